"""The optimiser, the train step, and the loop around it."""
