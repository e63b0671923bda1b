"""From a raw export to an item store and tables."""
