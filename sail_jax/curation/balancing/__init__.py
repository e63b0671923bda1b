"""Adaptive balancing: sampling weights of the training sets (arXiv 2510.12709, sec. 3.1.3)."""
