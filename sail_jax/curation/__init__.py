"""What decides which pairs are trained on: hard negatives, and the weights of the training sets."""
