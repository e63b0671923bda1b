"""Small files appear under their name only when complete."""

import json
import os

import pytest

import sail_jax
from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes, commit_json, partial_file, partial_folder
from sail_jax.runs.directory import RunDirectory
from sail_jax.vectors.embedding_set import EmbeddingSet


@pytest.mark.parametrize("shared", [False, True])
def test_a_small_file_replaces_the_one_before_and_leaves_no_part(tmp_path, shared):
    for text in ("before", "é"):
        commit_bytes(tmp_path / "x", text.encode(), shared=shared)
        assert (tmp_path / "x").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(SailError, match=f"{name} is no file but a folder or a device"):
            commit_bytes(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_json_is_indented_and_ends_in_a_line_break(tmp_path):
    values = {"a": [1, "é"]}
    commit_json(tmp_path / "x.json", values)
    assert (tmp_path / "x.json").read_bytes() == json.dumps(values, indent=2).encode() + b"\n"
    commit_json(tmp_path / "x.json", values, indent=None, ensure_ascii=False)
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{"a": [1, "é"]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        commit_json(tmp_path / "x.json", float("nan"), allow_nan=False)
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")  # as it was


def test_what_is_not_finished_takes_no_name_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), partial_file(tmp_path / "x") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), partial_folder(tmp_path / "y") as partial:
        (partial / "z").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "y.partial").mkdir()
    (tmp_path / "y.partial" / "old").touch()  # of a process that was killed
    with partial_file(tmp_path / "x") as partial:
        partial.write_text("whole")
    with partial_folder(tmp_path / "y") as partial:
        (partial / "z").write_text("whole")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "y", "y/z"]


@pytest.mark.parametrize(
    "words",
    [
        "train --config s3://bucket/quickstart.py --workdir run",
        "train --config quickstart --config.prompt.tokenizer=s3://bucket/tokenizer --workdir run",
        "ingest --config quickstart --source s3://bucket/raw --workdir data",
        "search --workdir run --embeddings x --image s3://bucket/x.jpg",
        "index --embeddings vectors --output gs://bucket/x.faiss",
    ],
)
def test_where_no_bucket_is_read_or_written_its_address_is_refused_by_name_and_makes_no_folder(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert "is gs://bucket/" in error or "is s3://bucket/" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("door", [sail_jax.load, RunDirectory, ItemStore.open, EmbeddingSet])
def test_the_doors_for_python_refuse_the_address_of_another_store(door):
    with pytest.raises(SailError, match="az://bucket/x is no address that can be read"):
        door("az://bucket/x")


def test_free_text_may_begin_with_an_address():
    assert config_lib.load("quickstart", ["prompt.unified=https://x.org: summarise"]).prompt.unified
