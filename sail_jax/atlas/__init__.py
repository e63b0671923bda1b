"""Maps of whole sets of embeddings, as files that Embedding Atlas and TensorBoard's projector open."""
