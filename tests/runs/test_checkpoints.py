"""Checkpoints prove themselves: damage is named, and the newest one that is whole is taken."""

import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from orbax.checkpoint._src.metadata import checkpoint as metadata_lib

import sail_jax
from sail_jax.cli import main
from sail_jax.errors import SailError
from sail_jax.runs import checkpoints as checkpoints_lib
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory


@pytest.fixture
def saved(tmp_path):
    """A run with the checkpoints of steps 2 and 4, of two small arrays each."""
    run = RunDirectory(tmp_path / "run")
    save(run, 2, 4)
    checkpoints_lib._say.cache_clear()
    return run


def items(step):
    return {"model": {"a": jnp.full((64, 3), step, jnp.float32)}, "training": {"step": jnp.int32(step)}}


def save(run, *steps):
    checkpoints = Checkpoints(run, keep=4)
    for step in steps:
        checkpoints.save(step, items(step), {"next_step": step})
    checkpoints.close()


def restored(run, **options):
    """The step that the arrays and the pipeline of the restored checkpoint say."""
    checkpoints = Checkpoints(run, **{"keep": 4} | options)
    arrays, pipeline = checkpoints.restore(jax.eval_shape(lambda: items(0)))
    checkpoints.close()
    assert pipeline == {"next_step": checkpoints.latest()}
    np.testing.assert_array_equal(arrays["model"]["a"], items(checkpoints.latest())["model"]["a"])
    return int(arrays["training"]["step"])


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_byte_in_any_file_a_short_one_and_a_missing_one_are_found(saved):
    newest = saved.checkpoints / "4"
    found = files(newest)
    assert {"d", "ocdbt.process_0", "pipeline", "verification"} <= {p for file in found for p in file.parts}
    for path in found:
        content, name = path.read_bytes(), str(path.relative_to(newest))
        for spoil in (flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), os.remove):
            spoil(path)
            with pytest.raises(SailError, match="no checkpoint that is whole") as raised:
                Checkpoints(saved, step=4)
            assert path.name in str(raised.value), name
            path.write_bytes(content)
    assert restored(saved) == 4


def test_training_goes_on_from_the_newest_whole_checkpoint_and_saves_the_step_again(saved, capsys):
    damaged = next(path for path in files(saved.checkpoints / "4" / "model") if path.parent.name == "d")
    flip(damaged)
    assert restored(saved) == 2
    said = capsys.readouterr().err
    assert str(damaged.relative_to(saved.checkpoints / "4")) in said and "step 2 is taken" in said
    assert saved.steps() == [2] and (saved.checkpoints / "4.damaged").is_dir()
    save(saved, 4)
    assert restored(saved) == 4


def test_reading_leaves_a_damaged_folder_as_it_is_and_does_not_check_the_training_state(saved, capsys):
    flip(files(saved.checkpoints / "4" / "training")[0])
    assert Checkpoints(saved, saves=False).latest() == 4
    shutil.rmtree(saved.checkpoints / "4" / "model")
    before = files(saved.checkpoints)
    assert Checkpoints(saved, saves=False).latest() == 2
    assert files(saved.checkpoints) == before and "is missing" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["empty folder", "file"])
def test_an_empty_folder_and_a_file_are_no_checkpoints(saved, wrong, capsys):
    place = saved.checkpoints / "6"
    place.mkdir() if wrong == "empty folder" else place.write_text("a checkpoint?")
    assert restored(saved, saves=False) == 4
    assert f"{place} is damaged" in capsys.readouterr().err
    assert restored(saved) == 4
    save(saved, 6)
    assert restored(saved) == 6


def test_without_a_whole_checkpoint_all_are_named_and_none_is_touched(saved):
    for step in saved.steps():
        flip(files(saved.checkpoints / str(step) / "model")[0])
    before = files(saved.path)
    with pytest.raises(SailError, match=r"(?s)no checkpoint that is whole \(4: model/.*; 2: model/"):
        Checkpoints(saved)
    assert files(saved.path) == before


def test_a_step_is_chosen(saved):
    assert restored(saved, step=2, saves=False) == 2
    with pytest.raises(SailError, match="no checkpoint of step 3; kept are 2, 4"):
        Checkpoints(saved, step=3, saves=False)


def test_checkpoints_without_digests_load_and_say_so_once(saved, capsys):
    shutil.rmtree(saved.checkpoints)
    trees = {name: ocp.args.StandardSave(tree) for name, tree in items(2).items()}
    with ocp.CheckpointManager(saved.checkpoints) as manager:
        manager.save(2, args=ocp.args.Composite(**trees, pipeline=ocp.args.JsonSave({"next_step": 2})))
    assert restored(saved) == restored(saved) == 2
    assert capsys.readouterr().err.count("older version, without digests") == 1
    manifest = saved.checkpoints / "2" / "model" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.raises(SailError, match="cannot be read.*no digests"):
        restored(saved)


def test_what_a_killed_save_left_is_removed(saved):
    left = saved.checkpoints / "5.orbax-checkpoint-tmp" / "model.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    assert restored(saved) == 4
    assert not left.parent.exists()


def test_what_a_save_had_yet_to_delete_is_removed(saved):
    save(saved, 6, 8, 10)
    before = files(saved.checkpoints)
    assert saved.steps() == [10, 8, 6, 4]
    shutil.rmtree(saved.checkpoints / "6" / "model")  # a deletion that was killed
    assert restored(saved, saves=False, keep=1) == 10 and saved.steps() == [10, 8, 6, 4]
    assert restored(saved, keep=2, always=(4,)) == 10
    assert files(saved.checkpoints) == [path for path in before if saved.checkpoints / "6" not in path.parents]


def test_the_verbs_take_the_step_and_name_what_is_damaged(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (step,) = RunDirectory(copy).steps()
    with pytest.raises(SailError, match=f"no checkpoint of step 7; kept are {step}"):
        sail_jax.load(copy, step=7)
    flip(next(path for path in files(copy / "checkpoints") if path.parent.name == "d"))
    for verb in (
        ["embed", "--output", str(tmp_path / "embeddings")],
        ["export", "--output", str(tmp_path / "export")],
        ["evaluate"],
    ):
        assert main([*verb, "--workdir", str(copy)]) == 2
        errors = capsys.readouterr().err
        assert "no checkpoint that is whole" in errors and "Traceback" not in errors
        assert not (tmp_path / "embeddings").exists() and not (tmp_path / "export").exists()


def test_a_checkpoint_whose_metadata_is_written_late_is_whole(tmp_path, monkeypatch):
    """Orbax writes it from a thread, which may come after the digests of all other files."""
    update = metadata_lib._MetadataStoreImpl.update

    def late(*arguments, **settings):
        time.sleep(0.2)
        return update(*arguments, **settings)

    monkeypatch.setattr(metadata_lib._MetadataStoreImpl, "update", late)
    run = RunDirectory(tmp_path / "run")
    checkpoints = Checkpoints(run)
    checkpoints.save(1, {"model": {"scale": jnp.float32(2)}}, {})
    checkpoints.close()
    assert Checkpoints(run, saves=False).latest() == 1


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("large", [1 << 10, 1 << 30])
def test_layers_are_read_by_themselves_where_they_are_large(tmp_path, monkeypatch, axis, large):
    """As far as the parameter is stored by layer; else all layers that are stored together, as in older checkpoints."""
    monkeypatch.setattr(checkpoints_lib, "_LARGE", large)
    kernel = jnp.arange(6 * 16 * 24, dtype=jnp.float32).reshape(6, 16, 24)
    if axis is not None:
        spec = [None] * 3
        spec[axis] = "x"
        mesh = jax.sharding.Mesh(jax.devices()[:2], "x")
        kernel = jax.device_put(kernel, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
    tree = {"model": {"llm": {"layers": {"kernel": kernel}, "embedding": jnp.ones((99, 7)), "scale": jnp.float32(2)}}}
    run = RunDirectory(tmp_path / "run")
    checkpoints = Checkpoints(run)
    checkpoints.save(1, tree, {})
    checkpoints.close()
    checkpoints = Checkpoints(run, saves=False)
    read = checkpoints.reader(tree)
    together = 1 if large == 1 << 10 else {None: 6, 0: 3, 2: 6}[axis]
    for layer in range(6):
        first, layers = read("model", "llm/layers/kernel", layer)
        assert (first, len(layers)) == (layer // together * together, together)
        np.testing.assert_array_equal(layers, kernel[first : first + together])
    for path, leaf in flatten_dict(tree["model"], sep="/").items():
        first, whole = read("model", path)
        assert first == 0 and whole.dtype == leaf.dtype
        np.testing.assert_array_equal(whole, leaf)
    on_one = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(on_one)[0], tree)
    checkpoints.close()
