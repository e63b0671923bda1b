"""Semantic IDs: short sequences of discrete codes for items (arXiv 2510.12709, sec. 4.4.6)."""
