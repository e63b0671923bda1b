"""Weights in and out: Hugging Face checkpoints to our parameters, and our parameters to PyTorch, by the same tables."""
