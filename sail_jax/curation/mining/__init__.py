"""Dynamic hard negative mining (arXiv 2510.12709, sec. 3.1.2)."""
