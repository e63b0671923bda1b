"""Vectors on the host and on the devices: normalisation, search, k-means, and folders of embeddings."""
