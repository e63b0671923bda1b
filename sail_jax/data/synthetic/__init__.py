"""Generates data: items with media, users, and a recommender with its logs."""
