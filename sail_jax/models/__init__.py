"""The towers and the models that combine them: Flax Linen modules.

The towers and models return `(output, out)`, where `out` is a named tuple of intermediates.
"""
