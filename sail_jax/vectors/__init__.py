"""Vectors on the host and on the devices: unit length, search, k-means, and folders of embeddings."""
