"""The towers and the model that fuses them: Flax Linen modules that return `(output, out)`, `out` naming intermediates."""
