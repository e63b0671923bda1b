"""Pair tables from a recommender's logs: one rule a module, and what the rules share."""
