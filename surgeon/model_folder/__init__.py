"""What a Hugging Face folder holds beside weights, and how it follows them.

Configs, labels, other files.
"""
