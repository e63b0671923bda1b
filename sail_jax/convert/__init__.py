"""Converts Hugging Face checkpoints to our parameters, and ours to PyTorch, by the same tables."""
