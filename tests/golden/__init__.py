"""What surgeon writes, pinned: recipes through the command line against recorded results."""
