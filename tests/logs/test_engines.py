"""What a user is told of an engine that is not there or runs out of memory; and the SQL of the rules."""

import dataclasses

import pytest
import small_logs as logs
from small_logs import config, with_logs

from sail_jax.cli import main
from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.engines import open_engine
from sail_jax.logs.pairs.build import BUILDERS, build_pairs, sql_of_builders
from sail_jax.logs.sequences.build import sql_of_sequences
from sail_jax.logs.sequences.constructions import CONSTRUCTIONS


def test_mistakes_are_told(tmp_path):
    with (
        pytest.raises(SailError, match="no engine 'duck'. Use one of duckdb, spark"),
        open_engine("duck", EngineConfig(), tmp_path),
    ):
        pass
    with (
        pytest.raises(SailError, match="DuckDB does not start: .*config.logs.engine"),
        open_engine("duckdb", EngineConfig(memory_limit="much"), tmp_path),
    ):
        pass


def test_too_little_memory_is_an_error_that_names_the_limit(tmp_path):
    logs.drawn_export(tmp_path)
    settings = with_logs(config(), engine=EngineConfig(memory_limit="1MB"))
    with pytest.raises(SailError, match=r"more than config\.logs\.engine\.memory_limit='1MB'.* Raise the limit"):
        build_pairs(settings, tmp_path, tmp_path / "tables", ["copair"])
    assert not list((tmp_path / "tables").glob("*.parquet"))


@pytest.mark.parametrize("split", ["time", "both"])
@pytest.mark.parametrize("dialect", ["bigquery", "trino", "snowflake", "spark"])
def test_every_rule_compiles_for_other_engines(tmp_path, dialect, split):
    logs.drawn_export(tmp_path)
    settings = with_logs(config(copair={"repeat": True}), id_embeddings={"like": "vectors/id_like"}, split=split)
    found = sql_of_builders(settings, tmp_path, engine=dialect)
    assert found.keys() == BUILDERS.keys()
    constructions = dataclasses.replace(settings.sequences, constructions=tuple(CONSTRUCTIONS))
    settings = dataclasses.replace(settings, sequences=constructions)
    sequences = sql_of_sequences(settings, tmp_path, embeddings=tmp_path / "vectors/dense", engine=dialect)
    assert sequences.keys() == CONSTRUCTIONS.keys()
    assert all("SELECT" in sql for sql in (found | sequences).values())


def test_a_dry_run_prints_sql_and_writes_nothing(tmp_path, capsys):
    logs.drawn_export(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    words = ["--config", str(tmp_path / "config.json"), "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["pairs", *words, "--only", "copair,cls", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("-- copair\n") and "-- cls\n" in printed and 'FROM "events"' in printed
    assert not (tmp_path / "out").exists()
