"""Reads and writes the files of a run directory: config, checkpoints, training log."""
