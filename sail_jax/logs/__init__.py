"""Training tables of pairs and sequences, built from a recommender's logs."""
