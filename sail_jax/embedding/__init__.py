"""A trained model that embeds items: in Python, in passes over a corpus, and in bulk."""
