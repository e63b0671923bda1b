"""SAIL-Embedding in JAX: one vector for any subset of video frames, text fields and sound (arXiv 2510.12709)."""

from sail_jax.embedding.embedder import Embedder, load
from sail_jax.items import Item

__all__ = ["Embedder", "Item", "load"]
