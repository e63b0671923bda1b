"""A recommender's logs, and the training tables that are made of them."""
