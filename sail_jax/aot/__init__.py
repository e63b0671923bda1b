"""The exact train step, compiled for machines that are not at hand, and what it needs there."""
