"""Evaluation: one metric family per file; `suite` runs them, `report` draws them."""
