"""Curation of training data: hard negative mining, and the sampling weights of training sets."""
