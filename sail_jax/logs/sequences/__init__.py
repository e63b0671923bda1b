"""Builds tables of users' histories from logs (arXiv 2510.12709, sec. 3.3.5)."""
