"""Tests each direction of the report on its own purpose: `python -m experiments.reproduce`."""
