"""Bytes that known programs send between eight host devices, and the same in the HLO of GPUs and TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.aot.collectives import KINDS, bytes_by_link, collective_bytes

ROWS, WIDTH, LAYERS, FLOAT = 16, 64, 5, 4


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))


def moved(function, mesh, *arguments, out=None):
    """The non-zero figures of a compiled function; arguments are (shape, spec)."""
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, spec in arguments
    ]
    out_shardings = None if out is None else NamedSharding(mesh, PartitionSpec(*out))
    compiled = jax.jit(function, out_shardings=out_shardings).lower(*arrays).compile()
    return {kind: count for kind, count in collective_bytes(compiled.as_text(), mesh.size).items() if count}


def sharded(mesh, function, axes, out):
    return jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=PartitionSpec(*out), check_vma=False
    )


def test_a_sum_inside_a_scan(mesh):
    def local(x):
        def step(x, _):
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        return jax.lax.scan(step, x, length=LAYERS)[0]

    shard = ROWS // 4 * WIDTH * FLOAT
    found = moved(sharded(mesh, local, "fsdp", ("fsdp",)), mesh, ((ROWS, WIDTH), ("fsdp",)))
    assert found == {"all-reduce": LAYERS * 2 * 3 / 4 * shard}


def test_parameters_gathered_layer_by_layer(mesh):
    def forward(x, kernels):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, kernels)[0]

    rows = (("data", "fsdp"),)
    kernels = ((LAYERS, WIDTH, WIDTH), (None, None, "fsdp"))
    found = moved(forward, mesh, ((1024, WIDTH), rows), kernels, out=rows)
    assert found == {"all-gather": LAYERS * 3 / 4 * WIDTH * WIDTH * FLOAT}


def test_a_ring(mesh):
    def local(x):
        ring = [(i, (i + 1) % 4) for i in range(4)]
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(jax.lax.ppermute(y, "fsdp", ring)), x)

    found = moved(sharded(mesh, local, "fsdp", ("fsdp",)), mesh, ((ROWS, WIDTH), ("fsdp",)))
    assert found == {"collective-permute": 3 * ROWS // 4 * WIDTH * FLOAT}


def test_scattered_sums_and_exchanged_blocks(mesh):
    everywhere = ("data", "fsdp")

    def scatter(x):
        return jax.lax.psum_scatter(x, everywhere, tiled=True)

    def exchange(x):
        return jax.lax.all_to_all(x, "data", split_axis=0, concat_axis=0, tiled=True)

    whole = ROWS * WIDTH * FLOAT
    found = moved(sharded(mesh, scatter, None, (everywhere,)), mesh, ((ROWS, WIDTH), ()))
    assert found == {"reduce-scatter": 7 / 8 * whole}
    found = moved(sharded(mesh, exchange, everywhere, (everywhere,)), mesh, ((ROWS, WIDTH), (everywhere,)))
    assert found == {"all-to-all": 1 / 2 * whole / 8}


def test_the_branch_that_sends_most_counts(mesh):
    def local(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.psum(x, "fsdp"), lambda x: x, x)

    found = moved(sharded(mesh, local, "fsdp", ("fsdp",)), mesh, ((ROWS, WIDTH), ("fsdp",)))
    assert found == {"all-reduce": 2 * 3 / 4 * ROWS // 4 * WIDTH * FLOAT}


def test_asynchronous_forms_of_gpus_count_once():
    lines = """HloModule step

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %gather = (bf16[2,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%x), \
replica_groups=[2,4]<=[8], dimensions={0}
  %gathered = bf16[8,128]{1,0} all-gather-done(%gather)
  %permute = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), \
source_target_pairs={{0,1},{1,0}}
  %sum = (f32[100]{0}, f32[28]{0}) all-reduce-start(%a, %b), replica_groups={}, to_apply=%add
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0}) while(%start), condition=%condition, body=%body
  %scatter = ((f32[80]{0}), f32[10]{0}) reduce-scatter-start(%z), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
"""
    found = collective_bytes(lines, 8)
    assert set(found) == set(KINDS)
    assert found == pytest.approx(
        {
            "all-gather": 6 * 3 / 4 * 8 * 128 * 2,
            "collective-permute": 6 * 4 * 4,
            "all-reduce": 6 * 2 * 7 / 8 * 128 * 4,
            "reduce-scatter": 7 / 8 * 80 * 4,
            "all-to-all": 0,
        }
    )


def test_asynchronous_forms_of_tpus_count_once():
    lines = """HloModule step

%start (x: bf16[2,128]) -> bf16[8,128] {
  %gather.1 = bf16[8,128]{1,0} all-gather(%x), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %begun = (bf16[2,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (x: bf16[2,128]) -> bf16[8,128] {
  %gather.2 = bf16[8,128]{1,0} all-gather(%x), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %ended = bf16[8,128]{1,0} custom-call(%x, %gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (x: f32[64]) -> f32[16] {
  %reduce = f32[64]{0} all-reduce(%x), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[16]{0} dynamic-slice(%reduce, %at), dynamic_slice_sizes={16}
}

ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {
  %async-collective-start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %scattered = f32[16]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %async-collective-done = bf16[8,128]{1,0} fusion(%async-collective-start), kind=kCustom, calls=%done
}
"""
    found = {kind: count for kind, count in collective_bytes(lines, 8).items() if count}
    assert found == {"all-gather": 3 / 4 * 8 * 128 * 2, "reduce-scatter": 3 / 4 * 64 * 4}


def test_collectives_of_a_shard_map_all_count():
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def send(a, b):
        ways = [(i, (i + 1) % 8) for i in range(8)]
        return (
            jax.lax.ppermute(a, "x", ways),
            jax.lax.ppermute(b, "x", ways),
            jax.lax.psum(a, "x"),
            jax.lax.psum(b, "x"),
        )

    split, whole = jax.P("x"), jax.P()
    run = jax.jit(jax.shard_map(send, mesh=mesh, in_specs=(split, split), out_specs=(split, split, whole, whole)))
    a, b = jnp.zeros((8, 100)), jnp.zeros((8, 10))
    found = collective_bytes(run.lower(a, b).compile().as_text(), 8)
    assert found["collective-permute"] == (100 + 10) * 4
    assert found["all-reduce"] == 2 * 7 / 8 * (100 + 10) * 4


# On two nodes of four: a group within each node, one over both nodes with two devices of each, one with one of each.
@pytest.mark.parametrize(
    ("groups", "within", "between"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 3 / 4, 0),
        ("[2,4]<=[8]", 3 / 4, 0),
        ("mesh['a'=2,'b'=4] {'b'}", 3 / 4, 0),
        ("[2,4]<=[4,2]T(1,0)", 3 / 4 / 2, 3 / 4 / 2),
        ("mesh['a'=4,'b'=2] {'a'}", 3 / 4 / 2, 3 / 4 / 2),
        ("mesh['a'=8] {'a':(1)2}", 0, 1 / 2),
        ("{{0,4},{1,5},{2,6},{3,7}}", 0, 1 / 2),
        ("{}", 7 / 8 * 3 / 4, 7 / 8 / 4),
    ],
)
def test_bytes_within_nodes_and_between_them(groups, within, between):
    gather = (
        f"ENTRY %main () -> f32[] {{\n  %x = f32[100]{{0}} all-gather(%y), replica_groups={groups}, channel_id=2\n}}"
    )
    found = bytes_by_link(gather, [0, 0, 0, 0, 1, 1, 1, 1])
    assert found["all-gather"] == pytest.approx((within * 400, between * 400))
    assert collective_bytes(gather, 8)["all-gather"] == pytest.approx((within + between) * 400)


def test_exchanges_and_permutations_over_nodes():
    lines = """ENTRY %main () -> f32[] {
  %x = f32[100]{0} all-to-all(%y), replica_groups={}, dimensions={0}
  %z = f32[10]{0} collective-permute(%y), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}"""
    found = bytes_by_link(lines, [0, 0, 1, 1])
    assert found["all-to-all"] == pytest.approx((100, 200))
    assert found["collective-permute"] == (40, 40)
    assert bytes_by_link(lines, [0, 1, 0, 1])["collective-permute"] == (0, 40)
