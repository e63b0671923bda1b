"""From a user's raw export to device-ready batches."""
