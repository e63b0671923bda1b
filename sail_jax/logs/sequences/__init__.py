"""Tables of users' histories, made of logs (arXiv 2510.12709, sec. 3.3.5)."""
