"""Evaluation: `suite` runs the tasks, `metrics` computes the figures, `report` draws them."""
