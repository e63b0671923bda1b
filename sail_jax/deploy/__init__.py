"""What leaves the system: bulk embeddings, semantic IDs, search (arXiv 2510.12709, sec. 4.4.6)."""
