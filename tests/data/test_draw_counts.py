"""What training draws from tables is counted exactly, once, in bounded memory; what cannot be counted is refused."""

import itertools
import math
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sail_jax.config.data import DatasetConfig
from sail_jax.data import draw_counts
from sail_jax.data.draw_counts import count_set
from sail_jax.data.frequencies import CandidateFrequencies
from sail_jax.data.hard_negative_table import NegativesTable, query_key, write_negatives
from sail_jax.data.sequence_tables import SequenceTable, write_sequences
from sail_jax.data.tables import SCHEMA, WEIGHTED_SCHEMA, Pair, PairTable, write_pair_columns, write_pairs
from sail_jax.errors import SailError
from sail_jax.items import item_key

ROWS = 9000


def keys(names):
    return np.array([item_key(name) for name in names], np.uint64)


def popular(rng, kind, count=40):
    """An item; the lower its number, the oftener."""
    return f"{kind}{int(count * rng.random() ** 3)}"


@pytest.fixture
def pairs():
    """Rows of items and of texts, with and without a score; some texts differ in white space alone."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        score = [None, 0.25, 0.75][number % 3]
        text = popular(rng, "find  " if number % 2 else "find ")
        query = (popular(rng, "q"), None) if number % 4 else (None, text)
        rows.append(Pair(*query, popular(rng, "t"), score))
    return rows


@pytest.fixture
def table(pairs, tmp_path):
    rows = [(pair, "test" if number % 5 == 0 else "train") for number, pair in enumerate(pairs)]
    write_pairs(tmp_path / "pairs.parquet", rows)
    return PairTable.open(tmp_path / "pairs.parquet", "train")


def drawn(pairs, low):
    """The rows of the split "train" that are pairs of the contrastive losses."""
    kept = [pair for number, pair in enumerate(pairs) if number % 5]
    return [pair for pair in kept if pair.score is None or pair.score >= low]


@pytest.fixture
def small_pieces(monkeypatch):
    """Entries are spilled and sorted in many small pieces."""
    monkeypatch.setattr(draw_counts, "_BUCKET", 64)
    monkeypatch.setattr(draw_counts, "_ROWS", draw_counts.ROW_GROUP)


@pytest.mark.parametrize("low", [0.0, 0.5])
def test_counts_are_those_of_the_rows(pairs, table, low, small_pieces, tmp_path):
    counted = count_set(tmp_path / "f", "copair", table, None, DatasetConfig(min_score=low))
    assert counted.rows == len(table)
    kept = drawn(pairs, low)
    expected = {
        "target": Counter(pair.target_id for pair in kept),
        "query": Counter(pair.query_id or " ".join(pair.query_text.split()) for pair in kept),
    }
    for role, counts in pickle.loads(pickle.dumps(dict(counted.counts))).items():
        assert counts.total == len(kept)
        found = counts.of(keys([*expected[role], "unknown"]))
        assert found.tolist() == [*expected[role].values(), 0]


def test_hard_negatives_count_by_the_rows_of_their_queries(pairs, table, small_pieces, tmp_path):
    """Each is drawn with the share of its query's list that a row draws."""
    rng, most = np.random.default_rng(1), 3
    queries = {(pair.query_id, pair.query_text) for pair in drawn(pairs, 0.0)}
    queries = sorted({(q, t) for q, t in queries if not (t and "  " in t)}, key=lambda query: query_key(*query))
    lists = {query: [f"n{n}" for n in rng.permutation(9)[: rng.integers(0, 6)]] for query in queries}
    write_negatives(tmp_path / "n.parquet", ((*query, ids, [0.5] * len(ids)) for query, ids in lists.items()), {})
    negatives = NegativesTable.open(tmp_path / "n.parquet")
    counted = count_set(tmp_path / "f", "copair", table, negatives, DatasetConfig(hard_negatives=most))
    expected = Counter()
    for pair in drawn(pairs, 0.0):
        text = pair.query_text and " ".join(pair.query_text.split())
        ids = lists[pair.query_id, text]
        for item_id in ids:
            expected[item_id] += Fraction(min(most, len(ids)), len(ids))
    counts = counted.counts["negative"]
    found = counts.of(keys(expected)) / counts.total
    wanted = [float(value / sum(expected.values())) for value in expected.values()]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert sorted(counted.counts) == ["negative", "query", "target"] and len(counted.identity) == 2


@pytest.mark.parametrize("low", [0.0, 0.5])
def test_rows_that_are_drawn_by_weight_count_by_it(pairs, table, low, small_pieces, tmp_path):
    weights = np.random.default_rng(1).integers(0, 9, len(table)).astype(np.float32)
    weights[0] = 8
    rows = [table[number] for number in range(len(table))]
    columns = pa.Table.from_pylist([row._asdict() for row in rows], pa.schema(list(SCHEMA)[:-1]))
    path = tmp_path / "weighted.parquet"
    write_pair_columns(path, {"train": [columns.append_column("weight", pa.array(weights))]}, WEIGHTED_SCHEMA)
    weighted = PairTable.open(path)
    counted = count_set(tmp_path / "f", "copair", weighted, None, DatasetConfig(min_score=low, by_weight=True))
    shares = CandidateFrequencies([(counted, 1.0)], 0)
    assert counted.counts.keys() == {"target", "query"}
    unit = 65_536 / 8
    assert counted.rows == weights.sum() * unit
    kept = [
        (pair, weight) for pair, weight in zip(rows, weights, strict=True) if pair.score is None or pair.score >= low
    ]
    total = Counter()
    for pair, weight in kept:
        total[pair.target_id] += weight
    found = counted.counts["target"].of(keys(total)) / unit
    np.testing.assert_array_equal(found, list(total.values()))
    drawn_at_all = [name for name, weight in total.items() if weight]
    expected = np.log([total[name] / total.total() for name in drawn_at_all])
    np.testing.assert_allclose(shares.log("target", keys(drawn_at_all)), expected, rtol=1e-5)
    queries = sum(weight for pair, weight in kept if pair.query_id == "q0")
    assert counted.counts["query"].of(keys(["q0"])) / unit == queries > 0
    assert counted.counts["query"].total == counted.counts["target"].total
    plain = count_set(tmp_path / "f", "copair", weighted, None, DatasetConfig(min_score=low))
    assert plain.rows == len(table) and plain.identity != counted.identity


def test_targets_of_histories_are_counted_and_their_users_are_not(tmp_path):
    targets = [f"t{n % 3}" for n in range(10)]
    rows = {"user_id": ["u"] * 10, "item_ids": [["a"]] * 10, "target_id": targets, "split": ["train"] * 10}
    write_sequences(tmp_path / "s.parquet", [pa.table(rows)])
    table = SequenceTable.open(tmp_path / "s.parquet")
    counted = count_set(tmp_path / "f", "next", table, None, DatasetConfig(kind="sequences"))
    assert counted.counts["target"].of(keys(["t0", "t1"])).tolist() == [4, 3] and "query" not in counted.counts


def test_log_frequencies_are_shares_and_those_of_several_sets_are_mixed(table, tmp_path):
    whole = count_set(tmp_path / "f", "a", table, None, DatasetConfig())
    high = count_set(tmp_path / "f", "b", table, None, DatasetConfig(min_score=0.5))
    ids = keys(["t0", "t5", "t39", "unknown"])
    counts = [part.counts["target"].of(ids) for part in (whole, high)]
    alone = CandidateFrequencies([(whole, 1.0)], 500).log("target", ids)
    np.testing.assert_allclose(np.exp(alone[:3]), counts[0][:3] / whole.counts["target"].total, rtol=1e-5)
    assert alone[3] == 0
    mixed = CandidateFrequencies([(whole, 3.0), (high, 1.0)], 500).log("target", ids[:3])
    together = 3 * counts[0] + counts[1]
    total = 3 * whole.counts["target"].total + high.counts["target"].total
    np.testing.assert_allclose(mixed, np.log(together[:3] / total), rtol=1e-5)
    assert not CandidateFrequencies([(whole, 1.0)], 500).log("negative", ids).any()
    np.testing.assert_allclose(CandidateFrequencies([], 500).log("random", ids), -np.log(500), rtol=1e-6)


def test_a_table_is_counted_once(table, tmp_path, monkeypatch):
    def count(low=0.0):
        return count_set(tmp_path / "f", "copair", table, None, DatasetConfig(min_score=low))

    first = count()
    assert count(0.5).identity != first.identity and len(list((tmp_path / "f").iterdir())) == 2
    monkeypatch.setattr(draw_counts, "_pair_columns", lambda *_: pytest.fail("counted again"))
    assert count().identity == first.identity
    monkeypatch.undo()
    rows = [(Pair("q0", None, f"t{n}"), "train") for n in range(7)]
    write_pairs(table.path, rows)
    other = count_set(tmp_path / "f", "copair", PairTable.open(table.path), None, DatasetConfig())
    assert other.counts["target"].total == 7


def test_a_process_that_comes_second_takes_what_the_first_wrote(table, tmp_path, monkeypatch):
    replace, calls = type(tmp_path).replace, itertools.count()

    def late(made, path):
        if made.name == "made" and not next(calls):
            count_set(tmp_path / "f", "copair", table, None, DatasetConfig())  # meanwhile another process ends
        return replace(made, path)

    monkeypatch.setattr(type(tmp_path), "replace", late)
    counted = count_set(tmp_path / "f", "copair", table, None, DatasetConfig())
    assert counted.counts["target"].total == math.ceil(ROWS * 4 / 5)
    assert [path.name for path in (tmp_path / "f").iterdir()] == counted.identity


def test_what_cannot_be_counted_is_refused(table, tmp_path):
    def count(path=table.path, folder="f", **settings):
        return count_set(tmp_path / folder, "copair", PairTable.open(path), None, DatasetConfig(**settings))

    low = tmp_path / "low.parquet"
    write_pairs(low, [(Pair("q", None, "t", 0.1), "train")] * 3)
    with pytest.raises(SailError, match=r"low.parquet .*'copair'.* no row reaches its min_score.*correct_popularity"):
        count(low, min_score=0.5)
    rows = pq.read_table(table.path)
    at, ids = rows.schema.get_field_index("target_id"), pa.array([None] * len(rows), pa.string())
    incomplete = tmp_path / "incomplete.parquet"
    pq.write_table(rows.set_column(at, "target_id", ids).replace_schema_metadata(rows.schema.metadata), incomplete)
    with pytest.raises(SailError, match="incomplete.parquet has rows without target_id"):
        count(incomplete)
    (tmp_path / "file").write_text("")
    with pytest.raises(SailError, match=r"pairs.parquet .*file.*Make the folder writable"):
        count(folder="file")
    damaged = PairTable.open(low)
    low.write_bytes(low.read_bytes()[:4] + bytes(200) + low.read_bytes()[204:])
    with pytest.raises(SailError, match=r"(?s)low.parquet is no Parquet file, or damaged .*write it again"):
        count_set(tmp_path / "f", "copair", damaged, None, DatasetConfig())
    assert not any(path.name.count(".") for path in (tmp_path / "f").glob("*"))  # nothing half-made stays
