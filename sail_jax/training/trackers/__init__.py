"""Sends the training log to TensorBoard and to the trackers that the config names."""
