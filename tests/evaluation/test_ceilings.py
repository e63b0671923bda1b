"""Ceilings of a generated world as results, and what they do not hold for."""

import dataclasses
import json

import pytest

from sail_jax import config as config_lib
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.ceilings import CEILINGS, FORMAT, read_ceilings
from sail_jax.data.tables import PairTable
from sail_jax.evaluation.ceilings import ceiling_results
from sail_jax.evaluation.suite import TaskResult, metrics_tree
from sail_jax.patterns import Pattern

KNOWN = {
    "queries": 24,
    "corpus": 136,
    "VTA": {"recall@1": 0.1, "recall@10": 0.7},
    "V": {"recall@1": 0.02, "recall@10": 0.2},
}
ALL, V = Pattern("VTA", "VTA"), Pattern("V", "V")


def result(view=ALL, model="trained", **changes):
    values = {"queries": 20, "skipped": 4, "corpus": 136, "width": 32, "own_view": view == ALL, **changes}
    return TaskResult(model, "i2i", view, values["own_view"], {"recall@1": 0.0, "recall@10": 0.1}, **values)


@pytest.fixture
def config(tmp_path):
    known = {"format": FORMAT, "tables": {"copair": KNOWN}}
    (tmp_path / CEILINGS).write_text(json.dumps(known))
    values = config_lib.default_config()
    values.data.dir = str(tmp_path)
    values.eval.tasks = {"i2i": {"table": "tables/copair.parquet"}}
    values.eval.ks = (1, 10, 7)
    return config_lib.build(values)


def test_each_task_and_view_has_one_ceiling(config):
    of_models = [result(), result(V), result(model="untrained"), result(width=16, full=False), result(model="tfidf")]
    ceilings = ceiling_results(config, of_models)
    assert [(r.view, r.main, r.queries, r.corpus) for r in ceilings] == [(ALL, True, 20, 136), (V, False, 20, 136)]
    tree = metrics_tree(ceilings)["ceiling"]
    assert tree["i2i/recall@10"] == 0.7 and tree["i2i/V/recall@10"] == 0.2
    assert tree["i2i/recall@7"] is None  # a cut-off that the world did not count


@pytest.mark.parametrize(
    "changes",
    [{"corpus": 160}, {"skipped": 3}, {"view": Pattern("T", "T")}, {"model": "tfidf"}],
)
def test_results_of_another_protocol_have_none(config, changes):
    assert ceiling_results(config, [result(**changes)]) == []


@pytest.mark.parametrize(
    "changes", [{"split": ""}, {"both_ways": True}, {"query_fields": ("title",)}, {"table": "tables/theme.parquet"}]
)
def test_tasks_with_other_settings_have_none(config, changes):
    task = dataclasses.replace(EvalTaskConfig(table="tables/copair.parquet"), **changes)
    evaluation = dataclasses.replace(config.eval, tasks={"i2i": task})
    assert ceiling_results(dataclasses.replace(config, eval=evaluation), [result()]) == []


def test_other_data_have_no_ceilings(config, tmp_path):
    (tmp_path / CEILINGS).write_text("{}")
    assert ceiling_results(config, [result()]) == []
    (tmp_path / CEILINGS).unlink()
    assert ceiling_results(config, [result()]) == []


def test_ingestion_keeps_them_under_the_names_of_its_tables(world):
    known, raw = read_ceilings(world), read_ceilings(world.parent / "raw")
    assert set(known["tables"]) == {"copair", "search", "look_search", "theme"}
    assert known["tables"]["copair"] == raw["tables"]["pairs.parquet"]
    assert known["tables"]["search"] == raw["tables"]["searches"]
    assert known["tables"]["copair"]["corpus"] == known["tables"]["search"]["corpus"] == 128
    for name in ("look_search", "theme"):  # each table counts its own targets
        targets = {pair.target_id for pair in PairTable.open(world / "tables" / f"{name}.parquet", "test")}
        assert known["tables"][name]["corpus"] == len(targets) < 128
