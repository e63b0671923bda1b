"""The mesh: its layout on the wiring of TPU slices, the split of a batch over hosts, and errors that say what fits."""

import types

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from sail_jax.aot.chips import find_devices
from sail_jax.config.training import MeshConfig
from sail_jax.errors import SailError
from sail_jax.sharding import mesh as mesh_lib
from sail_jax.sharding.mesh import AXES, data_shards, host_rows, in_batch_order, make_mesh, shard_batch, wiring_note

# ----------------------------------------------------------------------------------------------------------- layout


def hops(devices, axis, shape):
    """Mean hops on a torus of `shape` between neighbours of the ring along an axis of the mesh."""
    coordinates = np.array([device.coords for device in devices.flat]).reshape(*devices.shape, 3)
    apart = np.abs(coordinates - np.roll(coordinates, -1, axis=AXES.index(axis)))
    return np.minimum(apart, np.array(shape) - apart).sum(-1).mean()


@pytest.mark.parametrize(
    ("topology", "sizes", "before", "after"),
    [
        ("v5e:16x16", (32, 8, 1), (4.5, 1.75), (1.5, 1.75)),
        ("v6e:16x16", (32, 8, 1), (4.5, 1.75), (1.5, 1.75)),
        ("v6e:16x16", (16, 16, 1), (9.0, 1.875), (1.0, 1.0)),
        ("v5p:4x4x4", (8, 8, 1), (2.5, 1.5), (1.5, 1.5)),
        ("v5p:4x4x4", (16, 4, 1), (3.25, 1.5), (1.25, 1.0)),
    ],
)
def test_neighbours_on_the_mesh_are_near_on_the_torus(topology, sizes, before, after):
    pytest.importorskip("libtpu")
    devices = find_devices(topology)[1]
    shape = ([int(side) for side in topology.partition(":")[2].split("x")] + [1])[:3]
    mesh = make_mesh(MeshConfig(*sizes), devices)
    for found, expected in ((np.array(devices).reshape(sizes), before), (mesh.devices, after)):
        assert [hops(found, axis, shape) for axis in ("data", "fsdp")] == pytest.approx(expected)
    assert wiring_note(mesh) == ""
    # Every host has an equal part of the batch, in the order of the hosts, though its places do not adjoin.
    hosts = len({device.process_index for device in devices})
    parts = [mesh_lib._host_blocks(mesh, host) for host in range(hosts)]
    assert parts == [range(host * len(parts[0]), (host + 1) * len(parts[0])) for host in range(hosts)]
    assert sorted(mesh_lib._blocks(mesh)) == list(range(data_shards(mesh)))


def test_slices_and_nodes_are_joined_along_data():
    devices = in_hosts([0, 0, 0, 0, 1, 1, 1, 1])  # not in the order of the slices
    for device, at in zip(devices, (0, 1, 0, 1, 1, 0, 1, 0), strict=True):
        device.slice_index = at
    laid = np.vectorize(lambda device: device.slice_index)(mesh_lib._lay_out([2, 4, 1], devices))
    np.testing.assert_array_equal(laid[..., 0], [[0] * 4, [1] * 4])
    assert wiring_note(FakeMesh(mesh_lib._lay_out([4, 2, 1], devices))) == ""
    # An axis that is too large for a slice goes over several.
    assert wiring_note(FakeMesh(mesh_lib._lay_out([1, 4, 2], devices))).startswith("config.mesh.fsdp=4: ")
    assert wiring_note(FakeMesh(mesh_lib._lay_out([1, 1, 8], devices))).startswith("config.mesh.tensor=8: ")


@pytest.mark.parametrize("name", ["slice_index", "partition_index"])
def test_either_name_of_a_node_is_known(name):
    devices = in_hosts([0, 0, 1, 1])
    for device in devices:
        setattr(device, name, device.process_index)
    assert wiring_note(FakeMesh(np.reshape(devices, (2, 2, 1)))) == ""
    assert wiring_note(FakeMesh(np.reshape(devices, (1, 4, 1)))).startswith("config.mesh.fsdp=4: ")


def test_slices_of_tpus_are_joined_along_data():
    pytest.importorskip("libtpu")
    find_devices("v5e:4x4")  # prepares libtpu
    devices = topologies.get_topology_desc("v5e:4x4", platform="tpu", num_slices=2).devices
    mesh = make_mesh(MeshConfig(data=8, fsdp=4), devices)
    of_slice = [[device.slice_index for device in half.flat] for half in np.split(mesh.devices, 2)]
    assert of_slice == [[0] * 16, [1] * 16] and wiring_note(mesh) == ""
    assert hops(mesh.devices[:4], "fsdp", (9, 9, 9)) == 1.5  # along lines; 9, as a slice of this size is no torus
    assert wiring_note(make_mesh(MeshConfig(data=1, fsdp=32), devices)).startswith("config.mesh.fsdp=32: ")


def test_a_part_of_a_slice_that_is_no_box_keeps_its_order():
    pytest.importorskip("libtpu")
    devices = find_devices("v5e:4x4")[1][:6]
    assert make_mesh(MeshConfig(data=3, fsdp=2), devices).devices.ravel().tolist() == devices


# ------------------------------------------------------------------------------------------------------------ hosts


class FakeMesh:
    """The devices of several hosts, as (data, fsdp, tensor)."""

    def __init__(self, devices):
        self.devices, self.shape = devices, dict(zip(AXES, devices.shape, strict=True))


def in_hosts(processes):
    kind = {"platform": "gpu", "device_kind": "GPU"}
    return [types.SimpleNamespace(id=i, process_index=process, **kind) for i, process in enumerate(processes)]


@pytest.mark.parametrize(
    ("processes", "tensor", "blocks", "parts"),
    [
        ([0, 0, 1, 1], 1, (0, 1, 2, 3), [(0, 2), (2, 4)]),
        ([1, 0, 1, 0], 1, (2, 0, 3, 1), [(0, 2), (2, 4)]),
        ([1, 1, 1, 0], 1, (1, 2, 3, 0), [(0, 1), (1, 4)]),
        ([0, 0, 1, 1, 0, 0, 1, 1], 2, (0, 2, 1, 3), [(0, 2), (2, 4)]),
        ([2, 3, 0, 1], 2, (1, 0), [(0, 1), (0, 1), (1, 2), (1, 2)]),  # pairs of processes provide the same rows
        ([0, 0, 0, 1, 1, 1], 2, (0, 1, 2), [(0, 2), (1, 3)]),  # and of the middle rows, both
    ],
)
def test_every_host_provides_a_contiguous_part(processes, tensor, blocks, parts):
    mesh = FakeMesh(np.array(in_hosts(processes)).reshape(-1, 1, tensor))
    assert mesh_lib._blocks(mesh) == blocks
    assert [mesh_lib._host_blocks(mesh, at) for at in range(len(parts))] == [range(*part) for part in parts]


def test_parts_that_do_not_adjoin():
    mesh = FakeMesh(np.array(in_hosts([0, 1, 1, 2, 2, 0, 0, 2])).reshape(-1, 1, 2))
    with pytest.raises(SailError, match=r"config\.mesh\.tensor=2, process \d would"):
        for process in range(3):
            mesh_lib._host_blocks(mesh, process)


def test_host_rows():
    mesh = make_mesh(MeshConfig(4, 2, 1))
    assert host_rows(mesh, 16) == (0, 16)


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_every_block_of_a_batch_lies_whole_on_its_place(blocks, monkeypatch):
    monkeypatch.setattr(mesh_lib, "_blocks", lambda _: blocks)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows, frames = np.arange(8), np.arange(24).reshape(12, 2)
    placed = shard_batch({"rows": rows, "frames": frames, "none": frames[:0]}, mesh)
    np.testing.assert_array_equal(placed["rows"], np.concatenate([np.split(rows, 4)[block] for block in blocks]))
    np.testing.assert_array_equal(placed["frames"], np.concatenate([np.split(frames, 4)[block] for block in blocks]))
    np.testing.assert_array_equal(in_batch_order(np.asarray(placed["frames"]).T, mesh, axis=1).T, frames)
    assert placed["frames"].sharding.shard_shape((12, 2)) == (3, 2) and placed["none"].shape == (0, 2)


# ----------------------------------------------------------------------------------------------------------- errors


def test_rows_that_do_not_split_over_the_mesh_are_refused():
    with pytest.raises(SailError, match="An array of 10 rows does not split over the 4 data shards of this process"):
        shard_batch({"rows": np.arange(10)}, make_mesh(MeshConfig(4, 1, 2)))


@pytest.mark.parametrize(
    ("sizes", "fitting"),
    [
        ((3, 1, 1), "data=8, fsdp=1, tensor=1; "),
        ((-1, 3, 1), "data=2, fsdp=4, tensor=1; data=4, fsdp=2, tensor=1; data=1, fsdp=8, tensor=1."),
        ((-1, 1, 16), "data=1, fsdp=1, tensor=8; "),
        ((-1, -1, 1), "data=8, fsdp=1, tensor=1; "),
        ((0, 1, 1), "data=8, fsdp=1, tensor=1; "),
        ((-2, -4, 1), "data=8, fsdp=1, tensor=1; "),
    ],
)
def test_a_mesh_that_does_not_fit(sizes, fitting):
    with pytest.raises(SailError, match=f"config.mesh. These would fit: {fitting}"):
        make_mesh(MeshConfig(*sizes), jax.devices()[:8])


def test_a_batch_that_does_not_split_evenly():
    mesh = make_mesh(MeshConfig(4, 2, 1))
    with pytest.raises(SailError, match=r"batch_size is 12; .* 8 equal parts\. Choose a multiple of 8: 8 or 16\."):
        host_rows(mesh, 12)
    with pytest.raises(SailError, match=r"micro_batches each of these in 2\. Choose a multiple of 16: 16\."):
        host_rows(mesh, 8, micro_batches=2)
