"""What the next training run reads: the manifest, its stages, the optimizer's state."""
