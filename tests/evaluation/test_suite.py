"""The suite on stored vectors and on a model, against plain numpy; kinds of tasks, widths, the matrix."""

import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.evaluation import METRIC_FAMILIES
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.evaluation.chance import chance_results
from sail_jax.evaluation.sequence_tasks import mean_pool
from sail_jax.evaluation.suite import evaluate_task, metrics_tree, run_suite
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.vector_sources import ModelVectors
from sail_jax.models.model import init_params
from sail_jax.patterns import MODALITY_SETS
from sail_jax.sharding.mesh import make_mesh
from sail_jax.vectors.embedding_set import EmbeddingInfo, part_path, write_info, write_part
from sail_jax.vectors.unit import unit_rows

WIDTH = 32


@pytest.fixture
def store(world, settings):
    return open_store(config_lib.build(settings))


def write_set(folder, ids, z, fingerprint="f"):
    folder.mkdir(parents=True, exist_ok=True)
    half = len(ids) // 2
    for number, part in enumerate((slice(None, half), slice(half, None))):
        write_part(part_path(folder, number), ids[part], z[part], "float32")
    write_info(folder, EmbeddingInfo("m", fingerprint, z.shape[1], "float32", "VTA", ("title",), "Find."))


@pytest.fixture
def stored(store, tmp_path):
    """Writes random vectors of all items to a folder, shuffled; returns them, [items, D], in the store's order."""
    rng = np.random.default_rng(0)
    z = unit_rows(rng.normal(size=(len(store), WIDTH)))
    order = rng.permutation(len(store))
    ids = list(store.item_ids())
    write_set(tmp_path / "embeddings", [ids[i] for i in order], z[order])
    return z


def run(settings, tmp_path):
    results, *_ = run_suite(config_lib.build(settings), tmp_path, tmp_path / "embeddings")
    return metrics_tree(results)["embeddings"], results


def plain_recall(scores, relevant, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.mean([len(set(row) & set(wanted)) / len(wanted) for row, wanted in zip(order, relevant, strict=True)])


def write_table(path, store, rows):
    ids = list(store.item_ids())
    write_pairs(path, ((Pair(ids[q] if isinstance(q, int) else None, None, ids[t], s), "test") for q, t, s in rows))


@pytest.mark.parametrize("block", [50, 1000])
def test_scored_pairs_with_several_targets_or_none(settings, store, stored, tmp_path, block):
    """Pairs below the minimum score are the negatives of AUC; a query that has only such pairs is skipped."""
    rng = np.random.default_rng(1)
    rows = sorted({(int(q), int(t)) for q, t in rng.integers(0, 40, (90, 2)) if q != t and q < 25})
    scores = {pair: float(rng.integers(0, 3)) / 2 for pair in rows}
    scores |= {pair: 0.0 for pair in rows if pair[0] == rows[0][0]}
    write_table(tmp_path / "scored.parquet", store, [(*pair, scores[pair]) for pair in rows])
    task = {"table": str(tmp_path / "scored.parquet"), "min_score": 0.5, "metrics": (*METRIC_FAMILIES, "graded")}
    settings.eval.tasks = {"i2i": task}
    settings.eval.update(corpus_block=block, ks=(1, 10), widths=(8,), tfidf=False)
    figures, results = run(settings, tmp_path)
    queries = sorted({q for q, _ in rows})
    relevant = {q: [t for p, t in rows if p == q and scores[p, t] >= 0.5] for q in queries}
    counted = [q for q in queries if relevant[q]]
    for name, z in (("i2i", stored), ("i2i/d8", unit_rows(stored[:, :8]))):
        cosines = z @ z.T
        np.fill_diagonal(cosines, -np.inf)
        expected = plain_recall(cosines[counted], [relevant[q] for q in counted], 10)
        assert figures[f"{name}/recall@10"] == pytest.approx(expected)
        positive, negative = (
            np.array([cosines[pair] for pair in rows if (scores[pair] >= 0.5) == wanted]) for wanted in (True, False)
        )
        assert figures[f"{name}/auc"] == pytest.approx((positive[:, None] > negative).mean(), abs=1e-6)
        assert figures[f"{name}/separability/positive_mean"] == pytest.approx(positive.mean(), abs=1e-6)
        graded = [[(scores[p], cosines[p]) for p in rows if p[0] == q] for q in queries]
        graded = [pairs for pairs in graded if len({grade for grade, _ in pairs}) > 1]
        rho = np.mean([spearmanr(*zip(*pairs, strict=True)).statistic for pairs in graded])
        assert figures[f"{name}/graded/spearman"] == pytest.approx(rho)
        assert figures[f"{name}/graded/queries"] == len(graded) > 3
    assert (figures["i2i/queries"], figures["i2i/skipped"]) == (len(counted), len(queries) - len(counted))
    assert figures["i2i/skipped"] >= 1
    main_result = next(r for r in results if r.main)
    assert (main_result.width, main_result.view) == (WIDTH, ("VTA", "VTA"))
    assert main_result.chance == pytest.approx({f"recall@{k}": k / (len(store) - 1) for k in (1, 10)})
    assert figures["i2i/spread/effective_dimension"] > 20 and figures["i2i/spread/mean_norm"] < 0.3  # random vectors
    np.testing.assert_allclose(main_result.sample[1], stored[main_result.sample[0]], atol=1e-6)
    assert [r.rows is None for r in results] == [False, True]


@pytest.mark.slow
def test_all_families_of_metrics_can_be_chosen(settings, stored, tmp_path):
    settings.eval.tasks = {"i2i": settings.eval.tasks.i2i}
    figures, _ = run(settings, tmp_path)
    wanted = ("ndcg@10", "mrr@10", "map@10", "separability/overlap", "separability/dprime", "clustering/nmi")
    wanted += ("agreement/kendall", "agreement/top@10", "bijective", "auc")
    for name in wanted:
        assert 0 <= abs(figures[f"i2i/{name}"]) <= 1
        assert f"i2i/d16/{name}" in figures and f"i2i/d4/{name}" in figures
    assert 0.4 < figures["i2i/auc"] < 0.6 and figures["i2i/separability/overlap"] > 0.7  # random vectors
    settings.eval.tasks.i2i.metrics = ("auc",)
    chosen, _ = run(settings, tmp_path)
    assert chosen["i2i/auc"] == figures["i2i/auc"] and "i2i/ndcg@10" not in chosen and "i2i/recall@10" in chosen


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        ((None, None), {}, "no row of .* has a score: name the column of the grades in config.ingest.tables.few.score"),
        ((0.5, 0.5), {}, "no query of .* two different scores: list items of lower grades too"),
        ((0.5, -1.0), {}, "the score -1: grades are finite and at least 0; shift them"),
        ((0.5, 1.0), {"kind": "sequence"}, "a task of kind 'sequence' does not have: remove it"),
    ],
)
def test_a_graded_task_without_grades(settings, store, tmp_path, scores, changes, message):
    write_table(tmp_path / "few.parquet", store, [(0, 1, scores[0]), (0, 2, scores[1]), (1, 3, scores[0])])
    settings.eval.tasks = {"g": {"table": str(tmp_path / "few.parquet"), "metrics": ("graded",), **changes}}
    with pytest.raises(SailError, match=message):
        load_tasks(config_lib.build(settings), store)


def test_sequences(settings, store, stored, tmp_path):
    rng = np.random.default_rng(2)
    ids = list(store.item_ids())
    histories = [rng.integers(0, len(ids), n).tolist() for n in (1, 4, 10, 10)]
    histories[1][2] = histories[1][0]  # an item may come twice
    targets = rng.integers(0, len(ids), 4).tolist()
    table = {
        "item_ids": [[ids[i] for i in history] for history in histories] + [["nobody"]],
        "target_id": [ids[i] for i in targets] + ["nobody"],
        "split": ["test"] * 4 + ["train"],
    }
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    settings.eval.tasks = {"s2i": {"kind": "sequence", "table": str(tmp_path / "s.parquet"), "views": ("T",)}}
    settings.eval.ks = (1, 10, 25)
    figures, _ = run(settings, tmp_path)
    for name, width in (("s2i", WIDTH), ("s2i/d16", 16)):
        z = unit_rows(stored[:, :width])
        pooled = np.stack([z[history].mean(axis=0) for history in histories])
        for k in (1, 10, 25):
            expected = plain_recall(pooled @ z.T, [[target] for target in targets], k)
            assert figures[f"{name}/recall@{k}"] == pytest.approx(expected)
    assert figures["s2i/queries"] == 4 and "s2i/auc" not in figures
    settings.eval.tasks.s2i.split = ""
    with pytest.raises(SailError, match="nobody"):
        run(settings, tmp_path)


def test_a_mean_leaves_out_items_without_a_vector():
    z = np.array([[2, 0], [0, 0], [0, 3]], np.float32)
    pooled = mean_pool(z, [np.array([0, 1]), np.array([0, 2]), np.array([1])])
    np.testing.assert_allclose(pooled, [[1, 0], [0.5, 0.5], [0, 0]])


def test_classification_by_the_nearest_label(settings, store, stored, tmp_path):
    labels = [sorted(set(store[i].labels)) for i in range(len(store))]
    names = sorted({name for of_item in labels for name in of_item})
    assert len(names) > 5
    z = unit_rows(np.random.default_rng(3).normal(size=(len(names), WIDTH)))
    write_set(tmp_path / "embeddings" / "cls" / "corpus", names, z)
    settings.eval.tasks = {"cls": {"kind": "classification", "query_fields": ("title",)}}
    figures, results = run(settings, tmp_path)
    order = np.argsort(-stored @ z.T, axis=1)
    kept = [i for i, of_item in enumerate(labels) if of_item]
    for k in (1, 5):
        hit = [any(names[row] in labels[i] for row in order[i, :k]) for i in kept]
        assert figures[f"cls/accuracy@{k}"] == pytest.approx(np.mean(hit))
    assert (figures["cls/queries"], figures["cls/corpus"]) == (len(kept), len(names))
    assert figures["cls/skipped"] == len(store) - len(kept)


@pytest.mark.slow
def test_the_command_line_on_stored_vectors(settings, store, stored, tmp_path, capsys):
    path = tmp_path / "config.json"
    settings.eval.tasks = {"i2i": settings.eval.tasks.i2i, "cls": {"kind": "classification"}}
    config_lib.save(config_lib.build(settings), path)
    command = ["evaluate", "--config", str(path), "--workdir", str(tmp_path / "out")]
    command += ["--embeddings", str(tmp_path / "embeddings")]
    assert main(command) == 2
    assert "free texts on its corpus side" in capsys.readouterr().err
    names = sorted({name for i in range(len(store)) for name in store[i].labels})
    write_set(tmp_path / "embeddings" / "cls" / "corpus", names, np.ones((len(names), WIDTH)), "another model")
    assert main(command) == 2
    assert "another model" in capsys.readouterr().err
    write_set(tmp_path / "embeddings" / "cls" / "corpus", names[1:], stored[1 : len(names)])
    assert main(command) == 0
    said = capsys.readouterr()
    assert f"no vector for 1 of {len(names)} of config.eval.tasks.cls, corpus" in said.err
    assert "accuracy@5" in said.out and "R@10" in said.out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["step"] is None
    models = [r for r in written["results"] if r["model"] not in ("tfidf", "chance", "ceiling")]
    assert {r["width"] for r in models} == {32, 16, 4}
    of_items = [r for r in written["results"] if r["task"] == "i2i"]
    first = of_items[0]
    assert first["main"] and len(first["histograms"]["edges"]) == 51 and first["metrics"]["auc"] > 0
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["embeddings"]
    assert figures["i2i/d16/recall@10"] == of_items[1]["metrics"]["recall@10"]


def test_a_folder_without_any_of_the_items(settings, stored, tmp_path):
    write_set(tmp_path / "embeddings" / "i2i" / "queries", ["x", "y"], np.ones((2, WIDTH)))
    settings.eval.tasks = {"i2i": settings.eval.tasks.i2i}
    with pytest.raises(SailError, match="no vector for any of the"):
        run(settings, tmp_path)


@pytest.mark.slow
def test_the_matrix_of_modalities(settings, store, tmp_path):
    """Each cell equals the recall of a plain search by vectors under the two sets of modalities."""
    rows = [(i, j, None) for i, j in zip(range(0, 24, 2), range(1, 24, 2), strict=True)]
    write_table(tmp_path / "few.parquet", store, rows)
    task = {"table": str(tmp_path / "few.parquet"), "corpus": "targets", "both_ways": True}
    settings.eval.tasks = {"i2i": task | {"views": ("V",), "modality_matrix": True}}
    settings.eval.update(ks=(1, 3), widths=(16,), batch_size=32)
    config = config_lib.build(settings)
    mesh = make_mesh(config.mesh, jax.local_devices()[:1])
    embedder = Embedder(config, init_params(config.model, 0), make_extractor(config), mesh)
    task, source = load_tasks(config, store)["i2i"], ModelVectors("trained", embedder, store, tmp_path)
    results = evaluate_task(source, task, config)
    assert len(results) == 2 * 49
    tree = metrics_tree(results)["trained"]
    queries, corpus = source.vectors(task, [(view, view) for view in MODALITY_SETS])
    assert task.queries == list(range(24))  # of pairs of neighbours, both ways
    for query, target in (("V", "T"), ("VA", "VTA"), ("A", "A"), ("T", "T")):
        scores = unit_rows(queries[query]) @ unit_rows(corpus[target]).T
        scores[:, ~corpus[target].any(axis=1)] = -np.inf
        scores[~queries[query].any(axis=1)] = -np.inf
        np.fill_diagonal(scores, -np.inf)
        order = np.argsort(-scores, axis=1)[:, :3]
        expected = np.mean([i ^ 1 in order[i] and np.isfinite(scores[i, i ^ 1]) for i in range(24)])
        view = query if query == target else f"{query}->{target}"
        assert tree[f"i2i/{view}/recall@3"] == pytest.approx(expected)
    # Under V, an item without frames finds nothing, and is not found.
    has = corpus["V"].any(axis=1)
    reached = [has[i] and has[i ^ 1] and min(3 / (has.sum() - 1), 1) for i in range(24)]
    (of_frames,) = [r for r in chance_results(results) if r.view == ("V", "V")]
    assert of_frames.metrics["recall@3"] == pytest.approx(np.mean(reached)) and not all(has)
    assert "i2i/V->T/d16/recall@1" in tree and "i2i/V->T/auc" not in tree and "i2i/V/auc" in tree
    assert tree["i2i/V->T/queries"] == tree["i2i/queries"] == 24
