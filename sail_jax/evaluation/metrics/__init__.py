"""The metrics of evaluation, one family per file (arXiv 2510.12709, sec. 4.2)."""
