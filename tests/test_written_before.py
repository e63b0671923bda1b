"""Files of version 0.1 still load: a run, its export, embeddings, codebooks, indexes and tables.

`written_by_0_1/` was written by the verbs of that version, for its `experiment.py`, and is never written again.
"""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

import sail_jax
from sail_jax.cli import main

WRITTEN = tiny.REPO / "tests" / "written_by_0_1"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A copy of the folder, which is the working directory too: its config names the data by a relative path."""
    folder = shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected():
    return np.load(WRITTEN / "expected.npz")


def vectors(folder):
    table = pq.read_table(folder / "part-00000.parquet")
    return table["id"].to_pylist(), np.array(table["vector"].to_pylist())


@pytest.mark.slow
def test_a_run_gives_the_same_vectors(written, expected):
    embedder = sail_jax.load("run")
    np.testing.assert_allclose(embedder.encode(["a red cat", "search for music"]), expected["run_texts"], atol=1e-5)
    assert main(["embed", "--workdir", "run", "--output", "again"]) == 0
    ids, z = vectors(written / "embeddings" / "float32")
    ids_again, z_again = vectors(written / "again")
    assert ids_again == ids
    np.testing.assert_allclose(z_again, z, atol=1e-5)
    # The fingerprint is what embeddings and codebooks know their model by.
    before, again = (
        json.loads((written / at / "embeddings.json").read_text()) for at in ("embeddings/float32", "again")
    )
    assert again["fingerprint"] == before["fingerprint"]


def test_an_export_gives_the_same_vectors(written, expected):
    transformers = pytest.importorskip("sentence_transformers")
    model = transformers.SentenceTransformer("export", trust_remote_code=True)
    np.testing.assert_allclose(model.encode(["a red cat", "search for music"]), expected["export_texts"], atol=1e-5)


def test_a_run_goes_on_from_its_training_state(written, capsys):
    lines = (written / "run" / "metrics.jsonl").read_text()
    assert main(["train", "--config", "experiment.py", "--workdir", "run"]) == 0  # its two steps are done
    assert (written / "run" / "metrics.jsonl").read_text() == lines


@pytest.mark.slow
def test_tables_and_the_export_start_another_run(written):
    words = [
        "datasets.copair.negatives=negatives/copair.parquet",
        "datasets.copair.hard_negatives=2",
        "datasets.copair.split=test",
        "datasets.copair.materialized=materialized/copair",
        "weights=weights.json",
    ]
    command = ["train", "--config", "experiment.py", "--workdir", "new", "--config.init_from.model=export"]
    assert main([*command, "--config.lora.rank=0", *(f"--config.data.{word}" for word in words)]) == 0


@pytest.mark.slow
def test_embeddings_are_searched_by_an_index_and_without(written, capsys):
    for embeddings, index in (("float32", ["--index", "index.faiss"]), ("int8", [])):
        command = ["search", "--workdir", "run", "--embeddings", f"embeddings/{embeddings}", "--item", "item000003"]
        assert main([*command, "-k", "3", *index]) == 0
    assert capsys.readouterr().out.count("item0000") >= 6


@pytest.mark.parametrize("method", ["", "_vq"])
def test_codebooks_give_the_same_semantic_ids(written, capsys, method):
    command = ["semantic-ids", "assign", "--codebooks", f"codebooks{method}", "--embeddings", "embeddings/float32"]
    assert main([*command, "--output", "again.parquet", "--unique"]) == 0
    if not method:
        assert pq.read_table("again.parquet").equals(pq.read_table("ids.parquet"))
        first = pq.read_table("ids.parquet").to_pylist()[0]
        capsys.readouterr()
        assert main(["semantic-ids", "lookup", "--table", "ids.parquet", "--id", str(first["codes"][0])]) == 0
        assert first["id"] in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_is_drawn_again(written):
    assert main(["report", "--workdir", "run", "--output", "again.html"]) == 0
    assert (written / "again.html").stat().st_size > 10_000
