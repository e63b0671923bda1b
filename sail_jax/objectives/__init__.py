"""Training objectives: one loss per file, each a pure function of embeddings."""
