"""Floating-point operations of a traced function, counted on its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, whatever its length, so that it cannot be used if layers are
scanned. This module counts the multiplications and additions of matrix products and convolutions, two per multiply-add.
It ignores element-wise operations, as is customary: their time is memory traffic, not arithmetic.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from sail_jax.models.gpu_attention import CALL as ATTENTION_CALL


def executed_flops(
    function: Callable, *arguments: Any, static_argnums: tuple[int, ...] = (), platform: str = ""
) -> int:
    """Counts the operations of one call, over all devices; unused results are not counted.

    Args:
        function: is traced, not run; jitted or not.
        *arguments: arrays or `jax.ShapeDtypeStruct`s, and the static arguments.
        static_argnums: the positions of the static arguments.
        platform: "tpu" or "cuda" counts its branches of platform-dependent code; otherwise the default branches.

    Raises:
        ValueError: there are products in a `while` loop of unknown length.
    """
    return jaxpr_flops(jax.make_jaxpr(function, static_argnums=static_argnums)(*arguments), platform)


def jaxpr_flops(closed: ClosedJaxpr, platform: str = "") -> int:
    """Counts the operations of a traced function, as `executed_flops` does."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _of_jaxpr(jaxpr, platform)


def _of_jaxpr(jaxpr: Jaxpr, platform: str) -> int:
    return sum(_of_equation(equation, platform) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn, platform: str) -> int:
    return _RULES.get(equation.primitive.name, _inner)(equation, platform)


def _dot(equation: JaxprEqn, _: str) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * summed * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: JaxprEqn, _: str) -> int:
    kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    # Each output is a sum over the window and over the input channels of its group, which are the kernel's.
    summed = math.prod(kernel) // kernel[layout[0]]
    return 2 * summed * math.prod(equation.outvars[0].aval.shape)


def _scan(equation: JaxprEqn, platform: str) -> int:
    return equation.params["length"] * _inner(equation, platform)


def _while(equation: JaxprEqn, platform: str) -> int:
    if _inner(equation, platform):
        raise ValueError(
            "a `while` loop has matrix products and no known length; write it as `scan`, or as `fori_loop` with fixed "
            "bounds"
        )
    return 0


def _branches(equation: JaxprEqn, platform: str) -> int:
    branches = [_of_jaxpr(branch, platform) for branch in _jaxprs(equation)]
    meant_for = equation.params.get("branches_platforms")
    if meant_for is None:
        return max(branches)
    # `platform_dependent`: the default branch, whose entry is None, comes last.
    return next(
        (flops for flops, names in zip(branches, meant_for, strict=True) if names and platform in names), branches[-1]
    )


def _on_all_shards(equation: JaxprEqn, platform: str) -> int:
    mesh, split = equation.params["mesh"], equation.params["newly_manual_axes"]
    return math.prod(mesh.shape[axis] for axis in split) * _inner(equation, platform)


def _kernel(equation: JaxprEqn, platform: str) -> int:
    """Operations of a Pallas kernel: its author's cost estimate, else those of one program times their number."""
    if equation.params.get("cost_estimate"):
        return equation.params["cost_estimate"].flops
    return math.prod(equation.params["grid_mapping"].grid) * _inner(equation, platform)


def _foreign_call(equation: JaxprEqn, _: str) -> int:
    """Operations of cuDNN's attention: two products forwards, and five backwards, of all queries and keys."""
    name = equation.params["target_name"]
    if not name.startswith(ATTENTION_CALL):
        return 0
    (batch, queries, heads, width), (_, keys, *_) = (x.aval.shape for x in equation.invars[:2])
    return (5 if name.endswith("Backward") else 2) * 2 * batch * queries * heads * keys * width


def _inner(equation: JaxprEqn, platform: str) -> int:
    """Operations of all jaxprs in an equation: those of `jit`, `checkpoint`, `custom_vjp` and the like."""
    return sum(_of_jaxpr(jaxpr, platform) for jaxpr in _jaxprs(equation))


def _jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


_RULES: dict[str, Callable[[JaxprEqn, str], int]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "while": _while,
    "cond": _branches,
    "shard_map": _on_all_shards,
    "pallas_call": _kernel,
    "ffi_call": _foreign_call,
}
