"""The device mesh, and how parameters, batches and activations are split over it."""
