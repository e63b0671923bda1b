"""The ceilings of a generated world, against readers that rank the items of the world again and again at random."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.ceilings import _Cells, _of_searches, write_ceilings
from sail_jax.data.synthetic.items import LACKS, item_id, plan_items
from sail_jax.data.synthetic.pairs import write_pair_tables
from sail_jax.data.synthetic.searches import write_searches
from sail_jax.data.synthetic.topics import FACETS, draw_topics

CONFIG = SyntheticConfig(
    num_items=384, items_per_topic=8, test_queries=40, searches=4, test_searches=24, clean_pairs=4, off_domain_items=0
)
LETTER = dict(zip(FACETS, "TVA", strict=True))
TIMES = 60  # random orders; the mean of 40 queries is then within 2 points


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ceilings")
    plan = plan_items(draw_topics(48, 1), CONFIG, 1)
    write_pair_tables(folder, plan, CONFIG, 1)
    write_searches(folder, plan, CONFIG, 1)
    write_ceilings(folder, plan, CONFIG.test_searches)
    return folder, plan, json.loads((folder / "ceilings.json").read_text())


def read(plan, index, view):
    """What a reader of a view knows of an item: for each facet the set of values it may have, or None."""
    topic, known = plan.topics[plan.topic_of[index]], {}
    for facet, letter in LETTER.items():
        lacks = LACKS[plan.lacks[index]] == {"T": "text", "V": "frames", "A": "audio"}[letter]
        known[facet] = {getattr(topic, facet)} if letter in view and not lacks else None
    if known["look"] and plan.second[index] >= 0 and not known["theme"]:
        known["look"].add(other_look(plan, plan.topic_of[index], plan.second[index]))
    return known


def other_look(plan, topic, column):
    return plan.topics[plan.looks[topic, column]].look


def may_be(plan, known):
    """[T] probability of the topics, those that fit what is known."""
    fits = np.array([all(v is None or getattr(t, f) in v for f, v in known.items()) for t in plan.topics])
    if known["look"] and len(known["look"]) == 2:  # those whose frames may show this pair
        pairs = [[{t.look, other_look(plan, i, column)} for column in (0, 1)] for i, t in enumerate(plan.topics)]
        fits &= [known["look"] in of_topic for of_topic in pairs]
    return fits / fits.sum()


def recall(probabilities, relevant, ks, rng):
    """Mean recall of rankings by probability, equal ones at random; -1 for what is never found."""
    found = np.zeros(len(ks))
    for _ in range(TIMES):
        order = np.lexsort((rng.random(len(probabilities)), -np.round(probabilities, 9)))
        hits = relevant[order] & (probabilities[order] >= 0)
        found += [hits[:k].sum() / relevant.sum() for k in ks]
    return found / TIMES


@pytest.mark.parametrize("view", ["V", "VA", "VTA"])
@pytest.mark.parametrize("table, kind, facet", [("two_looks", "two_looks", None), ("sounds", "pairs", "sound")])
def test_tables_of_items(made, table, kind, facet, view):
    folder, plan, ceilings = made
    rng, ks = np.random.default_rng(0), (1, 10, 100)
    rows = pq.read_table(folder / f"{table}.parquet").to_pylist()
    targets = {}
    for row in rows:
        if row["split"] == "test":
            targets.setdefault(row["query_id"], set()).add(row["target_id"])
    values = np.array([[getattr(topic, f) for f in FACETS] for topic in plan.topics])
    if facet:
        alike = values[:, FACETS.index(facet)]
        relation = (alike[:, None] == alike) & ~np.eye(48, dtype=bool)
    else:
        relation = np.eye(48, dtype=bool)
    corpus = [read(plan, index, view) for index in range(plan.catalogue)]
    posteriors = np.stack([may_be(plan, known) for known in corpus])
    searched = plan.shows(facet)[: plan.catalogue] if facet else np.ones(plan.catalogue, bool)
    total = []
    for query in plan.queries[kind]:
        if item_id(query) not in targets:
            continue
        known = read(plan, query, view)
        relevant = np.array([item_id(index) in targets[item_id(query)] for index in range(plan.catalogue)])
        if not any(known.values()):
            total.append(np.zeros(len(ks)))
            continue
        scores = posteriors @ (relation @ may_be(plan, known))
        for index, item in enumerate(corpus):
            if not any(item.values()):
                scores[index] = -1
        total.append(recall(scores[searched], relevant[searched], ks, rng))
    known = ceilings["tables"][f"{table}.parquet"]
    assert (known["queries"], known["corpus"]) == (len(total), searched.sum())
    assert [known[view][f"recall@{k}"] for k in ks] == pytest.approx(np.mean(total, axis=0), abs=0.02)


@pytest.mark.parametrize("kind", ["topic", "look"])
def test_searches(made, kind):
    folder, plan, ceilings = made
    rng, ks = np.random.default_rng(0), (1, 10, 100)
    rows = [json.loads(line) for line in (folder / f"searches/{kind}.jsonl").read_text().splitlines()]
    for view in ("V", "VT", "VTA"):
        posteriors = np.stack([may_be(plan, read(plan, index, view)) for index in range(plan.catalogue)])
        blind = np.array([not any(read(plan, index, view).values()) for index in range(plan.catalogue)])
        searched = plan.shows("look")[: plan.catalogue] if kind == "look" else np.ones(plan.catalogue, bool)
        total, mixed = [], []
        for row in rows:
            if row["split"] == "test":
                relevant = np.isin([item_id(index) for index in range(plan.catalogue)], row["item_ids"])
                topics = np.unique(plan.topic_of[: plan.catalogue][relevant])
                scores = posteriors[:, topics].sum(1)
                scores = np.where(blind, -1, scores)
                total.append(recall(scores[searched], relevant[searched], ks, rng))
                if kind == "look":  # among the whole catalogue: what is seen to lack the look comes after all others
                    lacks = np.array([read(plan, index, view)["look"] is None for index in range(plan.catalogue)])
                    mixed.append(recall(np.where(blind, -1, np.where(lacks, 0, scores)), relevant, ks, rng))
        known = ceilings["tables"][f"searches/{kind}.jsonl"]
        assert (known["queries"], known["corpus"]) == (len(total), searched.sum())
        name = f"T->{view}"
        assert [known[name][f"recall@{k}"] for k in ks] == pytest.approx(np.mean(total, axis=0), abs=0.02)
        if kind == "look":
            whole = _of_searches(_Cells(plan), plan, kind, CONFIG.test_searches, whole=True)
            assert [whole[name][f"recall@{k}"] for k in ks] == pytest.approx(np.mean(mixed, axis=0), abs=0.02)
    together = ceilings["tables"]["searches"]
    assert together["queries"] == 4 * CONFIG.test_searches and set(together) == set(known)
    assert together["corpus"] == CONFIG.num_items


def test_perfect_figures_of_a_world_whose_items_lack_nothing(tmp_path):
    """By hand: 48 topics of 8 items; one sense leaves 12 topics, two leave 3."""
    plan = plan_items(draw_topics(48, 1), SyntheticConfig(num_items=384, test_queries=48, two_looks=0.0), 1)
    plan.lacks[:] = 0
    write_ceilings(tmp_path, plan, 48)
    known = json.loads((tmp_path / "ceilings.json").read_text())["tables"]
    expected = {"T": 10 / 96, "V": 10 / 96, "A": 10 / 96, "VT": 10 / 24, "VA": 10 / 24, "TA": 10 / 24, "VTA": 1.0}
    assert {view: known["pairs.parquet"][view]["recall@10"] for view in expected} == pytest.approx(expected, abs=1e-5)
    assert known["searches/theme.jsonl"]["T"]["recall@10"] == pytest.approx(10 / 96, abs=1e-5)
    assert known["looks.parquet"]["VTA"]["recall@10"] == pytest.approx(10 / 88, abs=1e-5)
