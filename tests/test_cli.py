"""The verbs from ingestion to the report, in one process, and the messages for mistakes."""

import json
import re

import numpy as np
import pytest
import tiny

import sail_jax
from sail_jax import config as config_lib
from sail_jax.cli import describe, main
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.pipeline import open_store
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.errors import BadRecordError
from sail_jax.evaluation.metrics.recall import recall_at_k
from sail_jax.evaluation.suite import run_suite
from training_runs import on_devices

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A trained and evaluated run, through the command line."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    settings = tiny.experiment(world)
    settings.train.update(steps=30, checkpoint_every=30, log_every=5)
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    settings.eval.batch_size = 32
    path = workdir.with_name("config.json")
    config_lib.save(config_lib.build(settings), path)
    with on_devices(1):
        assert main(["train", "--config", str(path), "--workdir", str(workdir)]) == 0
        assert main(["evaluate", "--workdir", str(workdir)]) == 0
    return workdir


@pytest.mark.slow
def test_the_figures(run):
    figures = json.loads((run / "metrics.json").read_text())
    assert set(figures) == {"trained", "untrained", "tfidf", "chance", "ceiling"}
    for name in ("i2i", "i2i/T", "i2i/V", "i2i/A", "q2i"):
        for k in (1, 10, 25, 50, 100):
            assert 0 <= figures["trained"][f"{name}/recall@{k}"] <= 1
    assert figures["trained"]["i2i/recall@10"] > figures["untrained"]["i2i/recall@10"]
    assert figures["trained"]["i2i/T/queries"] == figures["trained"]["i2i/queries"]
    assert figures["trained"]["i2i/recall@10"] < figures["ceiling"]["i2i/recall@10"] < 1
    assert 0 < figures["chance"]["i2i/V/recall@10"] < figures["chance"]["i2i/recall@100"]
    assert json.loads((run / "evaluation.json").read_text())["step"] == 30


@pytest.mark.slow
def test_the_report_shows_them(run):
    page = (run / "report.html").read_text()
    figures = json.loads((run / "metrics.json").read_text())
    assert f"{100 * figures['trained']['i2i/recall@10']:.1f}" in page
    assert "TF-IDF" in page and "data:image/" in page and "<script src" not in page


@pytest.mark.slow
def test_the_report_is_written_again_from_the_files_of_the_run(run, tmp_path):
    assert main(["report", "--workdir", str(run), "--output", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert (run / "report_files" / "loss.png").is_file()


@pytest.mark.slow
def test_recall_of_the_suite_equals_a_plain_computation(run, world):
    """Embeds with the public interface and counts by hand."""
    config = config_lib.load(run / "config.json")
    embedder, store = sail_jax.load(run), open_store(config)
    task = config.eval.tasks["i2i"]
    z = embedder.encode([store[i] for i in range(len(store))], instruction=task.query_instruction)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    wanted = {}
    table = PairTable.open(world / task.table, "test")
    for i in range(len(table)):
        a, b = store.position(table[i].query_id), store.position(table[i].target_id)
        wanted.setdefault(a, set()).add(b)
    corpus = np.array(sorted(set().union(*wanted.values())))
    order = corpus[np.argsort(-(z[list(wanted)] @ z[corpus].T), axis=1)]
    expected = recall_at_k(order, [np.array(list(v)) for v in wanted.values()], (10,))
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["trained"]["i2i/recall@10"] == pytest.approx(expected["recall@10"], abs=0.02)


@pytest.mark.slow
def test_the_embedder(run, world):
    embedder = sail_jax.load(run)
    store = open_store(config_lib.load(run / "config.json"))
    items = [store[i] for i in range(40)]
    z = embedder.encode(items)
    assert z.shape == (40, 32) and z.dtype == np.float32
    np.testing.assert_allclose(embedder.encode(items[7:9]), z[7:9], atol=1e-5)  # a batch changes nothing
    assert embedder.encode(["a search", "another"], dims=16).shape == (2, 16)
    assert embedder.encode([]).shape == (0, 32)
    full = next(item for item in items if item.modalities == "VTA")
    assert not np.allclose(embedder.encode([full], modalities="V"), embedder.encode([full], modalities="T"), atol=1e-3)
    damaged = sail_jax.Item("broken", frames=(b"no picture",))
    with pytest.raises(BadRecordError, match="broken"):
        embedder.encode([full, damaged])
    with pytest.raises(BadRecordError, match="none of the modalities"):
        embedder.encode([sail_jax.Item("empty")])


@pytest.mark.slow
def test_a_damaged_item_is_reported_and_left_out(run, tmp_path, monkeypatch, capsys):
    config = config_lib.load(run / "config.json", ["eval.untrained=False"])
    original = ItemStore.__getitem__

    def damaged(self, position):
        item = original(self, position)
        return sail_jax.Item(item.item_id, frames=(b"no picture",)) if position == 5 else item

    monkeypatch.setattr(ItemStore, "__getitem__", damaged)
    run_suite(config, run)
    assert "1 items (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "configs/quikstart.py", "--workdir", "x"], "no config file"),
        (["train", "--config", "QUICK", "--config.data.batch_sise=4", "--workdir", "x"], "batch_size"),
        (["train", "--config", "QUICK", "--workdir", "RUNS/x"], "data.dir"),
        (["evaluate", "--workdir", "RUNS/nothing"], "has no run"),
        (["evaluate", "--workdir", "RUNS", "--embeddings", "RUNS", "--distributed"], "leave it out with --embeddings"),
        (["evaluate", "--workdir", "RUNS", "--embeddings", "RUNS", "--step", "3"], "leave one of them out"),
        (["describe"], "--config"),
        (["ingest", "--config", "QUICK", "--source", "RUNS", "--workdir", "RUNS/data"], "items.jsonl"),
    ],
)
def test_mistakes_end_with_a_message_and_a_status(arguments, message, tmp_path, capsys):
    quick = str(tiny.REPO / "configs" / "quickstart.py")
    arguments = [a.replace("QUICK", quick).replace("RUNS", str(tmp_path)) for a in arguments]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.parametrize("verb", ["train --config quickstart", "evaluate", "embed --output X", "balance --output X"])
def test_processes_that_cannot_be_found(verb, monkeypatch, capsys):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    assert main([*verb.split(), "--workdir", "X", "--distributed"]) == 2
    assert "finds no other processes (coordinator_address" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_without_a_checkpoint(run, tmp_path, capsys):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_config(run, capsys):
    assert main(["evaluate", "--workdir", str(run), "--config.model.llm.mlp_width=64"]) == 2
    errors = capsys.readouterr().err
    assert "was saved with another config" in errors and "llm/layers/mlp/up/kernel" in errors


@pytest.mark.slow
def test_hard_negatives_from_the_command_line(run, tmp_path, capsys):
    output = tmp_path / "negatives" / "copair.parquet"
    assert main(["mine", "--workdir", str(run), "--dataset", "copair", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "lambda*" in said and f"negatives={output}" in said
    assert len(NegativesTable.open(output)) > 10
    assert output.with_suffix(".json").is_file() and output.with_suffix(".png").is_file()
    assert main(["mine", "--workdir", str(run), "--dataset", "copiar", "--output", str(output)]) == 2
    assert "copair" in capsys.readouterr().err


@pytest.mark.slow
def test_balancing_from_the_command_line(run, tmp_path, capsys):
    output = tmp_path / "weights.json"
    assert main(["balance", "--workdir", str(run), "--output", str(output), "--config.balancing.samples=40"]) == 0
    assert "data.weights" in capsys.readouterr().out and output.with_suffix(".png").is_file()
    assert json.loads(output.read_text())["weights"] == {"copair": pytest.approx(1.0)}


def test_prompts(world, tmp_path, capsys):
    quick = ["prompts", "--config", str(tiny.REPO / "configs" / "quickstart.py")]
    assert main([*quick, f"--config.data.dir={world}", "--row", "3", "--config.model.llm.vocab_size=512"]) == 0
    said = capsys.readouterr().out
    for part in ("data.datasets.copair, query", "eval.tasks.q2i, target", "Represent the search", "tokens", "title: "):
        assert part in said
    assert main([*quick, "--config.prompt.unified=One for all."]) == 0
    said = capsys.readouterr().out
    assert "{text}" in said and "One for all." in said and "Represent" not in said


@pytest.mark.slow
def test_an_evaluation_table_with_unknown_ids(run, tmp_path, capsys):
    write_pairs(tmp_path / "t.parquet", [(Pair("nobody", None, "nothing"), "test")])
    override = f"--config.eval.tasks.i2i.table={tmp_path / 't.parquet'}"
    assert main(["evaluate", "--workdir", str(run), override]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_materializing_from_the_command_line(world, tmp_path, capsys):
    settings, output = tmp_path / "config.json", tmp_path / "records"
    config_lib.save(config_lib.build(tiny.experiment(world)), settings)
    command = ["materialize", "--config", str(settings), "--output", str(output), "--dataset"]
    assert main([*command, "copair"]) == 0
    assert f"datasets.copair.materialized={output}" in capsys.readouterr().out
    assert main([*command, "copiar"]) == 2
    assert "copair" in capsys.readouterr().err


@pytest.mark.slow
def test_describe(capsys):
    assert main(["describe", "--config", str(tiny.REPO / "configs" / "sail_1b5.py")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1,543,714,304" in said
    # Four times 1,960,905,496 float32 numbers, and heads of the distillation.
    assert "Training holds 29.29 GiB (parameters 7.32 GiB, gradients 7.32 GiB, optimizer 14.65 GiB)" in said
    assert main(["describe", "--settings"]) == 0
    assert "pairs per global batch" in capsys.readouterr().out


def test_a_workdir_that_is_a_file(tmp_path, world, capsys):
    settings = tmp_path / "config.json"
    config_lib.save(config_lib.build(tiny.experiment(world)), settings)
    assert main(["train", "--config", str(settings), "--workdir", str(settings)]) == 2
    errors = capsys.readouterr().err
    assert str(settings) in errors and "Traceback" not in errors


def test_an_interrupt_ends_with_a_message_and_its_status(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(describe, "run", interrupt)
    assert main(["describe"]) == 130
    assert "stopped by SIGINT: " in capsys.readouterr().err


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["world", "--config", "quickstart", "--output", LONG],
        ["ingest", "--config", "quickstart", "--source", LONG, "--workdir", "data"],
        ["train", "--config", LONG, "--workdir", "run"],
        ["evaluate", "--workdir", LONG],
        ["report", "--workdir", f"{LONG}/{LONG}"],
        ["index", "--embeddings", LONG, "--output", "items.faiss"],
        ["semantic-ids", "lookup", "--table", LONG, "--id", "1"],
        ["describe", "--config", "x/" * 3000],
    ],
)
def test_a_name_that_is_too_long_is_told_in_a_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "nnn: File name too long. Check that the path" in said or "There is no" in said or "too long" in said


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError("Unable to allocate 3 PiB"), r"too large for this machine \(Unable to allocate 3 PiB\)"),
        (OverflowError("int too large to convert\nb"), r"for this machine \(int too large to convert\)\. Lower"),
        (
            FileNotFoundError(2, "Failed to open local file '/x/y'"),
            "error: Failed to open .* '/x/y'. Check that",
        ),
    ],
)
def test_what_no_machine_has_room_for_and_errors_without_a_file(raised, said, monkeypatch, capsys):
    def fail(*_):
        raise raised

    monkeypatch.setattr("sail_jax.cli.report.run", fail)
    assert main(["report", "--workdir", "x"]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_fault_of_ours_is_not_told_as_a_size(monkeypatch):
    def fail(*_):
        np.uint8(300)

    monkeypatch.setattr("sail_jax.cli.report.run", fail)
    with pytest.raises(OverflowError, match="out of bounds for uint8"):
        main(["report", "--workdir", "x"])
