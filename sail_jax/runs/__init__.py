"""What a run directory holds: config, checkpoints, training log."""
