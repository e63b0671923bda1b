"""Whole runs: resuming on another mesh, the files of a run, and refusal of another run's folder."""

import gzip
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import BatchSource, HostShare, LoadedBatch
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import write_pairs
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory, read_training_log, require_same_config
from sail_jax.sharding.chips import CHIPS
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import path_name
from sail_jax.training import loop, work
from sail_jax.training.loop import train
from sail_jax.training.setup import host_share
from sail_jax.training.stop_signals import StopSignals
from training_runs import on_devices


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(settings, tmp_path):
    settings.train.update(steps=4, checkpoint_every=2)
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("O->O",)}}
    with on_devices(1):
        whole = train(config_lib.build(settings), tmp_path / "whole")
    run = tmp_path / "moved"
    shutil.copytree(tmp_path / "whole", run)
    shutil.rmtree(run / "checkpoints" / "4")  # back to the state after two steps
    settings.mesh.update(data=2, fsdp=2, tensor=2)
    moved = train(config_lib.build(settings), run)
    assert moved.start == 2 and moved.steps == 4
    for (path, left), right in zip(
        jax.tree_util.tree_flatten_with_path(whole.state.params)[0], jax.tree.leaves(moved.state.params), strict=True
    ):
        # Softmax does not see the biases of keys: their gradient is rounding, which Adam makes as large as any.
        if not path_name(path).endswith("key/bias"):
            np.testing.assert_allclose(left, right, atol=2e-5, err_msg=path_name(path))
    names = {leaf.sharding.spec for leaf in jax.tree.leaves(moved.state.params)}
    assert any("tensor" in str(spec) for spec in names)


def text_alone(settings):
    """Pairs of items with only text, since compiling the other towers takes long."""
    return {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished short run, shared by several tests."""
    settings = tiny.experiment(world)
    settings.train.update(steps=2, checkpoint_every=2)
    settings.data.datasets = text_alone(settings)
    settings.optimizer.warmup_steps = 1
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with on_devices(1), pytest.MonkeyPatch.context() as sheets:
        sheets.setattr(work, "chip_of", lambda device: CHIPS["v5e"])  # a CPU has no known peak
        train(config_lib.build(settings), workdir, profile=(2, 2))
    return settings, workdir


@pytest.mark.slow
def test_files_of_a_run(finished):
    run = RunDirectory(finished[1])
    assert list(run.tensorboard.glob("events*")) and (run.checkpoints / "2").is_dir()
    assert run.saved_config() == config_lib.build(finished[0])
    (trace,) = run.tensorboard.glob("plugins/profile/*/*.trace.json.gz")  # for Perfetto
    with gzip.open(trace, "rt") as file:
        steps = [event["args"]["step_num"] for event in json.load(file)["traceEvents"] if event.get("name") == "train"]
    assert steps == ["2"]
    assert list(trace.parent.glob("*.xplane.pb"))  # for TensorBoard


@pytest.mark.slow
def test_the_docs_list_what_is_logged(finished):
    page = (tiny.REPO / "docs" / "training.md").read_text()
    section = page.partition("## What is logged\n")[2].partition("\n## ")[0]
    documented = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)))
    assert len(set(documented)) == len(documented)
    forms = {key: re.compile(re.sub("[A-Z]{2,}", "[^/]+", key)) for key in documented}
    first, line = read_training_log(RunDirectory(finished[1]))
    assert first["step"] == 1 and first.keys() == line.keys()
    unknown = [key for key in line if not any(form.fullmatch(key) for form in forms.values())]
    assert not unknown, "Add these keys to the table of docs/training.md."
    absent = {key for key, form in forms.items() if not any(map(form.fullmatch, line))}
    # Losses and inputs that this run does not have, and what a CPU does not tell.
    assert absent == {
        *("cosent", "micl", "late_fusion", "distill", "taught_items", "TEACHER/cosine"),
        *("TEACHER/ceiling", "hard_negatives", "scale/vision", "scale/sound"),
        *("eval/TASK/METRIC", "eval/seconds", "peak_memory_bytes"),
    }


@pytest.mark.slow
def test_a_run_with_other_numbers_compiles_nothing_again(finished, tmp_path, one_device):
    settings = finished[0].copy_and_resolve_references()
    settings.update(seed=2, train={"steps": 3}, optimizer={"peak": 1e-3, "b2": 0.98, "weight_decay": 0.3})
    settings.objective.update(temperature=0.1, weights={"nce": 0.5})
    events = []

    def listen(name, **_):
        events.append(name)

    floor = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)  # of a busy machine: small ones are not kept
    jax.monitoring.register_event_listener(listen)
    try:
        train(config_lib.build(settings), tmp_path)
    finally:
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", floor)
    # A program is compiled where the cache misses it.
    assert "/jax/compilation_cache/cache_hits" in events and "/jax/compilation_cache/cache_misses" not in events


@pytest.mark.slow
def test_a_finished_run_is_not_changed(finished, one_device):
    result = train(config_lib.build(finished[0]), finished[1])
    assert result.start == result.steps == 2
    with pytest.raises(SailError, match="3:4.*it is finished"):
        train(config_lib.build(finished[0]), finished[1], profile=(3, 4))


@pytest.mark.slow
def test_a_signal_stops_a_run_with_its_state_saved_and_it_goes_on_with_the_same_bits(
    finished, tmp_path, monkeypatch, one_device, capsys
):
    """SIGUSR1 comes in the first step, SIGTERM before and after every save."""
    settings, whole = finished
    config, run = tmp_path / "config.json", RunDirectory(tmp_path / "run")
    config_lib.save(config_lib.build(settings), config)

    def reached(self, step, reached=StopSignals.reached):
        os.kill(os.getpid(), signal.SIGUSR1)
        return reached(self, step)

    def save(*arguments, save=loop.Checkpoints.save):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as signals:
        signals.setattr(StopSignals, "reached", reached)
        signals.setattr(loop.Checkpoints, "save", save)
        assert main(["train", "--config", str(config), "--workdir", str(run.path)]) == 75
    said = capsys.readouterr().err
    assert said == "stopped by SIGUSR1: the state is saved at step 1, and the same command goes on from there.\n"
    resumed = train(config_lib.build(settings), run.path)
    assert (resumed.start, resumed.steps) == (1, 2)
    again = train(config_lib.build(settings), whole)
    for left, right in zip(jax.tree.leaves(again.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(left, right)
    logs = [read_training_log(run), read_training_log(RunDirectory(whole))]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


@pytest.mark.slow
def test_a_run_grows_and_keeps_its_tokenizer(finished, tmp_path, one_device, capsys):
    run = RunDirectory(shutil.copytree(finished[1], tmp_path / "run"))
    settings = finished[0].copy_and_resolve_references()
    settings.train.steps = 3
    result = train(config_lib.build(settings), run.path)
    assert (result.start, result.steps) == (2, 3) and "grows: train.steps" in capsys.readouterr().out
    assert run.steps()[0] == 3 and run.saved_config().train.steps == 3
    kept = PreTrainedTokenizerFast.from_pretrained(run.tokenizer)
    data = PreTrainedTokenizerFast.from_pretrained(f"{settings.data.dir}/tokenizer")
    assert kept.get_vocab() == data.get_vocab()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed"),
        ({"train": {"steps": 1}, "optimizer": {"warmup_steps": 0}}, r"train\.steps"),
        ({"model": {"llm": {"width": 64}}}, r"model\.llm\.width"),
        ({"data": {"batch_size": 8}}, "batch_size"),
    ],
)
def test_a_workdir_of_another_config_is_refused(finished, change, message):
    settings = finished[0].copy_and_resolve_references()
    settings.update(change)
    with pytest.raises(SailError, match=message):
        train(config_lib.build(settings), finished[1])


def test_tasks_that_cannot_be_evaluated_are_said_before_training(settings, world, tmp_path, monkeypatch, capsys):
    empty = pa.table({"item_ids": [["x"]], "target_id": ["x"], "split": ["train"]})
    pq.write_table(empty, tmp_path / "sequences.parquet")
    write_pairs(tmp_path / "empty.parquet", [])
    tasks = settings.eval.tasks
    tasks.empty = {"table": str(tmp_path / "empty.parquet"), "split": ""}
    tasks.none = {"table": "tables/nothing.parquet"}
    tasks.other = {"table": tasks.i2i.table, "split": "tset"}
    tasks.next = {"table": str(tmp_path / "sequences.parquet"), "kind": "sequence", "split": "test"}
    tasks.seen = {"table": str(tmp_path / "sequences.parquet"), "kind": "sequence", "split": "train"}
    monkeypatch.setattr(loop._Run, "train", lambda self, profile: None)
    train(config_lib.build(settings), tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be evaluated" in line]
    assert [re.search(r"eval\.tasks\.(\w+)", line)[1] for line in said] == ["empty", "next", "none", "other"]
    assert "nothing.parquet" in said[2] and "has no split 'tset'; it has" in said[3]
    assert "sequences.parquet has no row in the split 'test'." in said[1]


@pytest.mark.slow
def test_changed_data_is_refused(finished, monkeypatch, one_device):
    """Of a run that is at its end too: the texts and pictures of the items count, not only how many there are."""
    settings = finished[0].copy_and_resolve_references()
    opened = ItemStore.__init__

    def other_contents(self, *given, **options):
        opened(self, *given, **options)
        self.contents = "others"

    monkeypatch.setattr(ItemStore, "__init__", other_contents)
    with pytest.raises(SailError, match="contents of items: was '[0-9a-f]{16}', is 'others'. Use the data"):
        train(config_lib.build(settings), finished[1])


@pytest.mark.slow
def test_too_many_bad_records_stop_the_run_with_its_state_saved(settings, tmp_path, monkeypatch, one_device):
    settings.data.max_bad_records = 1
    settings.train.update(steps=4, checkpoint_every=4)
    settings.data.datasets = text_alone(settings)
    good = BatchSource.__getitem__
    monkeypatch.setattr(
        BatchSource, "__getitem__", lambda self, step: good(self, step)._replace(bad_records=(f"record of {step}",))
    )
    with pytest.raises(SailError, match=r"(?s)max_bad_records.*record of 0.*step 2"):
        train(config_lib.build(settings), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_host_share_has_the_groups_of_its_mesh(settings):
    config = config_lib.build(settings)
    assert host_share(config, make_mesh(MeshConfig(4, 2, 1))) == HostShare(0, 16, 8)
    assert host_share(config, make_mesh(MeshConfig(2, 1, 4))) == HostShare(0, 16, 2)


def test_a_host_share_covers_its_shards(settings):
    source = BatchSource(config_lib.build(settings), HostShare(8, 16, 4))
    step = next(s for s in range(6) if source.examples(s)[0][0] == 0)
    arrays = source[step].arrays
    assert arrays.tokens.shape[0] == 8 and arrays.frames.shape[0] == 8 * 2 * 2
    assert arrays.frame_item.max() < 8 // 4 * 2


def test_settings_that_fit_a_step_to_a_mesh_may_change_on_resume(settings, tmp_path):
    run = RunDirectory(tmp_path)
    config_lib.save(config_lib.build(settings), run.config)
    settings.train.micro_batches = 2
    settings.model.update(remat="full", media_chunk=2)
    settings.model.perceiver.attention_block = 8
    settings.objective.score_block = 4
    settings.mesh.shard_optimizer = True
    require_same_config(run, config_lib.build(settings))
    settings.data.text_budget = 30.0
    with pytest.raises(SailError, match="text_budget"):
        require_same_config(run, config_lib.build(settings))


class Step:
    def put(self, parts):
        return parts


class Running:
    def __init__(self, ready):
        self.is_ready = lambda: ready


@pytest.mark.parametrize(("ready", "waited"), [(True, 3.0), (False, 0.0)])
def test_time_waiting_for_a_batch_counts_only_while_no_step_runs(monkeypatch, ready, waited):
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    loaded = LoadedBatch(("part",), 0, (0,), None, (), 0, 0)
    ahead = loop._Prefetch(iter([loaded]), Step())
    ahead.fetch(Running(ready))
    assert ahead.take() == (loaded, ("part",), waited)
