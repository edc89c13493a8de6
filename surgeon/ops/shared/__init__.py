"""What several ops need; an op that alone needs something has it in its own file."""
