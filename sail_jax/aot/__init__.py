"""Compiles the exact train step for other machines ahead of time, and reports what it needs there."""
