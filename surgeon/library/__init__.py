"""What `import surgeon` offers: the commands as functions, and tensors of checkpoints in memory."""
