"""The metrics, a family per file (arXiv 2510.12709, sec. 4.2)."""
