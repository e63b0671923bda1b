"""What a traced function computes, read off its jaxpr."""

import jax


def shapes_of_products(jaxpr):
    """Shapes of the results of all matrix products, inside of loops too."""
    return shapes_of(jaxpr, "dot_general")


def shapes_of(jaxpr, primitive):
    """Shapes of all results of a primitive, inside of loops too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield from (var.aval.shape for var in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner, primitive)
