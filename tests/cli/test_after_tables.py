"""The command that a verb names as the next: it runs as it stands, and asks for what the config lacks."""

import argparse
from pathlib import Path

import pytest

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.cli.after_tables import print_after_tables
from sail_jax.cli.common import print_next
from sail_jax.logs.addresses import Address


@pytest.fixture
def config():
    def build(datasets, tasks=()):
        named = {name: {"table": f"tables/{name}.parquet"} for name in datasets}
        asked = {name: {"table": f"tables/{name}.parquet"} for name in tasks}
        return config_lib.build({"data": {"datasets": named}, "eval": {"tasks": asked}})

    return build


def said_after(capsys, *arguments):
    options = argparse.Namespace(program="sail-jax", config=Path("mine.py"), source=Path("logs"), overrides=[])
    print_after_tables(options, *arguments)
    return capsys.readouterr().out.removeprefix("Next: ").strip()


def test_the_verb_that_makes_what_is_lacking_comes_next(tmp_path, capsys, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, folders = Path("data"), "--config mine.py --source logs --output data/tables --workdir data"
    (data / "tables").mkdir(parents=True)
    asked = config(["copair", "seq_collab_multi"], ["eval_vanilla"])
    assert said_after(capsys, asked, "ingest", data) == f"sail-jax pairs {folders}"
    (data / "tables/copair.parquet").touch()
    assert said_after(capsys, asked, "pairs", data) == f"sail-jax sequences {folders}"
    # What `sequences` left out is not asked of it again.
    train = "sail-jax train --config mine.py --config.data.dir=data --workdir RUN"
    assert said_after(capsys, asked, "sequences", data) == train
    assert said_after(capsys, config(["of_my_own"]), "ingest", data) == train


def test_a_config_that_names_no_table_gets_one_that_was_made(tmp_path, capsys, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, empty = Path("data"), config([])
    said = said_after(capsys, empty, "pairs", data, data / "tables/copair.parquet")
    assert "--config.data.dir=data --config.data.datasets.copair.table=tables/copair.parquet --workdir" in said
    for made, table in (
        ("s3a://b/x/copair.parquet", "s3://b/x/copair.parquet"),
        ("file:///x/copair.parquet", "/x/copair.parquet"),
    ):
        assert f"datasets.copair.table={table} --w" in said_after(capsys, empty, "pairs", data, Address(made))
    said = said_after(capsys, empty, "sequences", None, Path("elsewhere/seq_collab_multi.parquet"))
    assert "--config.data.dir=DATA" in said and f"table={tmp_path / 'elsewhere/seq_collab_multi.parquet'}" in said
    assert "--config.data.datasets.seq_collab_multi.kind=sequences" in said


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (("--config", "mine.py"), "--config mine.py --config.seed=3 '--config.data.dir=my data'"),
        (("--config", "mine.py", "--config.data.dir=d"), "--config mine.py --config.seed=3 --config.data.dir=d"),
        (("--config", "runs/x/config.json"), "--config runs/x/config.json"),
        (("--workdir", "runs/x"), "--workdir runs/x"),
    ],
)
def test_settings_of_a_command_are_those_of_the_next_where_it_reads_the_same_config(words, settings, capsys):
    given = ["seed=3", "data.dir=my data"]
    options = argparse.Namespace(program="sail-jax", config=Path("mine.py"), overrides=given)
    print_next(options, "train", *words)
    assert capsys.readouterr().out == f"Next: sail-jax train {settings}\n"


def test_search_keeps_the_settings_of_the_verb_that_embedded_the_run(capsys):
    options = argparse.Namespace(program="sail-jax", workdir=Path("runs/x"), overrides=["data.dir=june"])
    for words, settings in (
        (("search", "--workdir", "runs/x", "--text", "q"), "search --workdir runs/x --config.data.dir=june --text q"),
        (("search", "--workdir", "RUN"), "search --workdir RUN"),
        (("report", "--workdir", "runs/x"), "report --workdir runs/x"),
    ):
        print_next(options, *words)
        assert capsys.readouterr().out == f"Next: sail-jax {settings}\n"


def test_a_world_of_other_settings_is_ingested_with_them(tmp_path, capsys):
    words = ["--config", "configs/quickstart.py", "--config.seed=7", "--config.synthetic.num_items=128"]
    words += ["--config.synthetic.items_per_topic=8", "--config.synthetic.num_users=20"]
    assert main(["world", *words, "--output", str(tmp_path / "raw")]) == 0
    assert f"ingest {' '.join(words)} --source" in " ".join(capsys.readouterr().out.split())
