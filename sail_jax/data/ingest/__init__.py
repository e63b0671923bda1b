"""Ingests a raw export into an item store and tables."""
