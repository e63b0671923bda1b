"""Training: the optimiser, the train step and the training loop."""
