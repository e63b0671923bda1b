"""Counted operations against formulas, and against XLA's own count where nothing loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from sail_jax.training.flops import executed_flops, jaxpr_flops

ROWS, WIDTH, INNER, LAYERS = 32, 16, 24, 5
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
SQUARES = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
MLP = (
    jax.ShapeDtypeStruct((WIDTH, INNER), jnp.float32),
    jax.ShapeDtypeStruct((INNER, INNER), jnp.float32),
    jax.ShapeDtypeStruct((INNER, WIDTH), jnp.float32),
)
ONE_SQUARE = 2 * ROWS * WIDTH * WIDTH


def layers(remat):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    def loss(kernels, x):
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, kernels)[0].sum()

    return loss


def mlp(kernels, x):
    for kernel in kernels:
        x = jnp.sin(x @ kernel)
    return x.sum()


def xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_a_product():
    batched = jax.ShapeDtypeStruct((3, 5, 7), jnp.float32), jax.ShapeDtypeStruct((3, 7, 2), jnp.float32)
    assert executed_flops(jnp.matmul, *batched) == 2 * 3 * 5 * 7 * 2
    assert executed_flops(jax.jit(jnp.matmul), *batched) == 2 * 3 * 5 * 7 * 2


def test_loops_count_their_length():
    assert executed_flops(layers(remat=False), SQUARES, X) == LAYERS * ONE_SQUARE
    assert executed_flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ y.T @ y, x), X) == 7 * 4 * ROWS**2 * WIDTH


def test_a_gradient_costs_three_forward_passes_or_four_with_rematerialisation():
    both = jax.grad(layers(remat=False), argnums=(0, 1))
    assert executed_flops(both, SQUARES, X) == 3 * LAYERS * ONE_SQUARE
    both = jax.grad(layers(remat=True), argnums=(0, 1))
    assert executed_flops(both, SQUARES, X) == 4 * LAYERS * ONE_SQUARE


def test_unused_results_are_not_counted():
    forward = 2 * ROWS * (WIDTH * INNER + INNER * INNER + INNER * WIDTH)
    # Without the gradient of the input, the first layer needs no product for it.
    assert executed_flops(jax.grad(mlp), MLP, X) == 3 * forward - 2 * ROWS * WIDTH * INNER
    # Nobody asks for the value here, so of the pass and its recomputation one is left.
    assert executed_flops(jax.grad(jax.checkpoint(mlp)), MLP, X) == 3 * forward - 2 * ROWS * WIDTH * INNER
    assert executed_flops(jax.value_and_grad(jax.checkpoint(mlp)), MLP, X) == 4 * forward - 2 * ROWS * WIDTH * INNER
    assert executed_flops(lambda x: (x, x @ x.T)[0], X) == 0


def test_a_rematerialised_pass_computes_only_what_the_gradient_needs():
    @jax.checkpoint
    def linear_at_the_end(kernels, x):
        first, last = kernels
        return (jnp.sin(x @ first) @ last).sum()

    kernels = MLP[0], MLP[2]
    first, last = 2 * ROWS * WIDTH * INNER, 2 * ROWS * INNER * WIDTH
    gradient = jax.value_and_grad(linear_at_the_end, argnums=(0, 1))
    assert executed_flops(gradient, kernels, X) == 3 * (first + last) + first


@pytest.mark.parametrize(("groups", "strides"), [(1, (1, 1)), (2, (2, 2))])
def test_convolutions_and_products_as_xla_counts_them(groups, strides):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x = jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)
    assert executed_flops(convolve, x, kernel) == xla_flops(convolve, x, kernel)

    def products(a, b, c):
        return jnp.einsum("ij,bjk,kl->bil", a, b, c)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 16), (3, 16, 4), (4, 32))]
    assert executed_flops(products, *shapes) == xla_flops(products, *shapes)


def test_a_gradient_as_xla_counts_it():
    counted, by_xla = executed_flops(jax.grad(mlp), MLP, X), xla_flops(jax.grad(mlp), MLP, X)
    assert counted <= by_xla < 1.1 * counted  # XLA counts the sines too


def test_the_costlier_branch_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda x: x, lambda x: x @ x.T @ x, x)

    assert executed_flops(either, jax.ShapeDtypeStruct((), bool), X) == 4 * ROWS**2 * WIDTH


def test_a_loop_of_unknown_length_is_refused_where_it_has_products():
    def until(x):
        return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ y.T @ y, x)

    with pytest.raises(ValueError, match="known length"):
        executed_flops(until, X)
    assert executed_flops(lambda x: jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y + 1, x), X) == 0


def test_a_sharded_body_counts_for_every_shard():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    rows = PartitionSpec(("data", "fsdp"))

    def local(x, kernel):
        return x @ kernel

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    kernel = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    assert executed_flops(sharded, X, kernel) == ONE_SQUARE


def test_a_function_with_a_gradient_of_its_own():
    @jax.custom_vjp
    def square(x):
        return x @ x.T

    square.defvjp(lambda x: (x @ x.T, x), lambda x, cotangent: ((cotangent + cotangent.T) @ x,))
    assert executed_flops(square, X) == 2 * ROWS * ROWS * WIDTH
    value_too = jax.value_and_grad(lambda x: square(x).sum())
    assert executed_flops(value_too, X) == 2 * 2 * ROWS * ROWS * WIDTH


@pytest.mark.parametrize("cost", [None, pl.CostEstimate(flops=123, transcendentals=0, bytes_accessed=0)])
def test_a_kernel(cost):
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] @ x_ref[...].T

    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, WIDTH), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 8), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((ROWS, 8), jnp.float32),
        cost_estimate=cost,
    )
    assert executed_flops(call, X) == (4 * 2 * 8 * 8 * WIDTH if cost is None else 123)


def test_a_traced_function():
    assert jaxpr_flops(jax.jit(jnp.matmul).trace(X, SQUARES.update(shape=(WIDTH, 3))).jaxpr) == 2 * ROWS * WIDTH * 3


def test_code_for_a_platform_is_counted_for_that_platform():
    def function(x):
        return jax.lax.platform_dependent(x, tpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert executed_flops(function, x) == 2 * 8**3
    assert executed_flops(function, x, platform="tpu") == 4 * 8**3
