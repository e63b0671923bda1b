"""Search among embedded items: exact or by a faiss index, from the command line or on a page."""
