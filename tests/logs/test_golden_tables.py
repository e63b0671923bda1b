"""Pairs and sequences have the rows and the counts that stand in the golden tables, on each engine."""

import golden_sequences
import golden_tables
import pytest
import small_logs as logs
from small_logs import with_logs
from spark_here import alone, engine_config, needs_spark

from sail_jax.logs.addresses import Address


@pytest.mark.parametrize("case", golden_tables.CASES)
def test_rows_and_counts_are_the_golden_ones(tmp_path, case):
    tables, summary = logs.build(tmp_path, golden_tables.make_logs(case, tmp_path))
    rows, counts = golden_tables.read_golden(case)
    assert golden_tables.counts_of(summary) == counts
    assert golden_tables.rows_of(tables) == rows


@pytest.mark.parametrize("case", golden_sequences.CASES)
def test_sequences_and_counts_are_the_golden_ones(tmp_path, case):
    rows, counts = golden_sequences.build_case(case, tmp_path)
    golden_rows, golden_counts = golden_sequences.read_golden(case)
    assert counts == golden_counts
    assert rows == golden_rows


def build_on_spark(folder):
    """Builds all pairs and all sequences; for a process of its own."""
    settings = golden_tables.make_logs("drawn_capped", folder)
    shared, spark = engine_config(f"file://{folder}/scratch"), engine_config()
    source, output = Address(f"file://{folder}"), Address(f"file://{folder}/tables")
    pairs = logs.build(source, with_logs(settings, engine=shared), output=output, engine="spark")
    (folder / "sequences").mkdir()
    output = Address(f"file://{folder}/sequences/tables")
    sequences = golden_sequences.build_case("sequences_capped", folder / "sequences", "spark", spark, output)
    return pairs, sequences, split_by_users(folder, "spark", with_logs(settings, engine=spark))


def split_by_users(folder, engine, settings):
    """Builds tables of users who are split."""
    settings = with_logs(settings, split="both", test_users=0.4)
    return logs.build(folder, settings, "copair", "q2i_search", output=folder / f"users-{engine}", engine=engine)


@needs_spark
def test_spark_gives_the_same_rows_and_counts(tmp_path):
    """All ten builders from logs at an address and all constructions, where every limit cuts and every tie is drawn.

    Spark writes both to addresses, and the tables of users who are split to a folder.
    """
    (tables, summary), sequences, of_users = alone(build_on_spark, tmp_path)
    rows, counts = golden_tables.read_golden("drawn_capped")
    assert golden_tables.counts_of(summary) == counts
    assert golden_tables.rows_of(tables) == rows
    parts = sorted(path.name for path in (tmp_path / "tables/copair.parquet").glob("[!.]*"))
    assert {part.partition("-")[0] for part in parts} == {"test", "train"} and len(parts) > 2
    left = {path.suffix for folder in ("tables", "sequences/tables") for path in (tmp_path / folder).glob("[!.]*")}
    assert left == {".parquet", ".json", ".html"} and not list((tmp_path / "tables").glob("sail_jax-*"))
    assert sequences == golden_sequences.read_golden("sequences_capped")
    assert of_users == split_by_users(tmp_path, "duckdb", golden_tables.make_logs("drawn_capped", tmp_path))
