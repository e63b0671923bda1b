"""Orders of rows: each once an epoch in windows of row groups; draws by weight against a chi-square; what they cost."""

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from sail_jax.data.row_order import GroupOrder, WeightedOrder, row_order
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError

SIZES = (5, 3, 8, 1, 8, 8, 2, 6)


def write(path, weights, sizes=SIZES, **options):
    """A table of one split whose row groups have these sizes, as another program writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{path.stem}-{row}" for row in range(sum(sizes))]
    columns = {"query_id": ids, "target_id": ids, "split": ["train"] * len(ids)}
    table = pa.table(columns if weights is None else columns | {"weight": weights})
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            writer.write_table(table.slice(start, size))
    return path


# ------------------------------------------------------------------------------------------------------ by row groups


@pytest.mark.parametrize("together", [1, 3, 8, 100])
def test_each_row_comes_once_an_epoch_and_few_row_groups_are_open_at_a_time(together):
    order, rows = GroupOrder(np.array(SIZES), 7, together), sum(SIZES)
    group_of = np.repeat(np.arange(len(SIZES)), SIZES)
    epochs = [[order[number] for number in range(rows * epoch, rows * (epoch + 1))] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
        seen = group_of[epoch]
        first, last = ({g: at for at, g in pairs} for pairs in (list(enumerate(seen))[::-1], enumerate(seen)))
        open_at = [sum(first[g] <= at <= last[g] for g in first) for at in range(rows)]
        assert max(open_at) <= together
    assert epochs[0] != epochs[1] != epochs[2]
    again = pickle.loads(pickle.dumps(GroupOrder(np.array(SIZES), 7, together)))
    assert [again[number] for number in range(rows + 5, rows + 9)] == epochs[1][
        5:9
    ]  # from the middle, and no other way
    assert [GroupOrder(np.array(SIZES), 8, together)[number] for number in range(rows)] != epochs[0]


def test_rows_of_a_window_are_shuffled_evenly():
    """Over many epochs, each row stands at each place equally often."""
    counts, order = np.zeros((6, 6)), GroupOrder(np.array([2, 1, 3]), 0, 3)
    for number in range(6 * 600):
        counts[number % 6, order[number]] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_memory_grows_with_row_groups_and_not_with_rows():
    """10^9 rows in row groups of 4,096: below a tenth of a byte a row, in the table's arrays and the order together."""
    groups = 10**9 // 4096
    sizes = np.full(groups, 4096)
    tracemalloc.start()
    order = GroupOrder(sizes, 0, 32)
    rows = {order[number] for number in (0, 1, 10**9 - 4096, 3 * 10**9)}
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 4 and most + 24 * groups < 10**9 / 10


# ---------------------------------------------------------------------------------------------------------- by weight


@pytest.mark.parametrize("together", [0, 3])
@pytest.mark.parametrize("kind", ["even", "skewed", "integers"])
def test_draws_are_in_proportion_to_the_weights(tmp_path, together, kind):
    rng = np.random.default_rng(1)
    weights = {
        "even": np.full(sum(SIZES), 0.5, np.float32),
        "skewed": np.where(rng.random(sum(SIZES)) < 0.2, 0, rng.pareto(1.0, sum(SIZES))).astype(np.float32),
        "integers": rng.integers(0, 5, sum(SIZES)),
    }[kind]
    table = PairTable.open(write(tmp_path / "t.parquet", weights))
    order = row_order(table, 5, groups=together, by_weight=True)
    draws = 20_000 if together else 8_000
    counts = np.bincount([order[number] for number in range(draws)], minlength=len(table))
    possible = np.flatnonzero(weights)
    assert counts[weights == 0].sum() == 0
    expected = draws * weights[possible].astype(float) / weights.sum(dtype=float)
    if (
        together
    ):  # draws of a stretch share row groups, so that counts of rows vary more: their means are held to shares
        assert np.abs(counts[possible] - expected).max() < 6 * np.sqrt(draws * max(SIZES))
    else:
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-4


def test_row_groups_of_stretches_are_in_proportion_to_their_weights(tmp_path):
    """With one row group a stretch, what is drawn of each stretch is a draw of its own."""
    weights = np.random.default_rng(0).pareto(1.5, sum(SIZES))
    table = PairTable.open(write(tmp_path / "t.parquet", weights))
    order, group_of = WeightedOrder(table, 0, 1), np.repeat(np.arange(len(SIZES)), SIZES)
    length = sum(SIZES) // len(SIZES)
    rows = np.array([order[number] for number in range(4000 * length)]).reshape(4000, length)
    assert (group_of[rows] == group_of[rows[:, :1]]).all()
    shares = np.bincount(group_of, weights) / weights.sum()
    assert stats.chisquare(np.bincount(group_of[rows[:, 0]], minlength=len(SIZES)), 4000 * shares).pvalue > 1e-4
    one = np.bincount(rows[:, 0], minlength=len(weights))
    assert stats.chisquare(one, 4000 * weights / weights.sum()).pvalue > 1e-4


@pytest.mark.parametrize("together", [0, 2])
def test_a_draw_is_a_function_of_its_number(tmp_path, together):
    table = PairTable.open(write(tmp_path / "t.parquet", np.arange(sum(SIZES), dtype=np.float32)))
    order = row_order(table, 3, groups=together, by_weight=True)
    rows = [order[number] for number in range(300)]
    again = pickle.loads(pickle.dumps(row_order(table, 3, groups=together, by_weight=True)))
    assert [again[number] for number in reversed(range(150, 300))] == rows[:149:-1]
    assert [row_order(table, 4, groups=together, by_weight=True)[number] for number in range(300)] != rows


def test_only_the_weights_of_proposed_row_groups_are_read(tmp_path, monkeypatch):
    weights = np.zeros(400, np.float32)
    weights[0] = 1
    table = PairTable.open(write(tmp_path / "t.parquet", weights, sizes=(4,) * 100))
    read = []
    monkeypatch.setattr(
        PairTable,
        "column",
        lambda self, group, name, plain=PairTable.column: read.append(group) or plain(self, group, name),
    )
    order = row_order(table, 0, groups=0, by_weight=True)
    assert not read and {order[number] for number in range(50)} == {0} and read == [0]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (None, {}, "has no column 'weight'.*--config.builders.weight of `pairs`"),
        ([1.0] * 40 + [-1.0], {}, r"row group 7 has the weights -1.0 to 1.0"),
        ([1.0] * 40 + [None], {}, "row group 7 has rows without a weight"),
        ([1.0] * 40 + [float("inf")], {}, "the weights 1.0 to inf"),
        ([0.0] * 41, {}, "gives all rows the weight 0"),
        ([1.0] * 41, {"write_statistics": False}, "no statistics of it"),
        (["1"] * 41, {}, "the column 'weight' is string; write it as float"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_when_a_table_is_opened(tmp_path, weights, options, message):
    path = write(tmp_path / "t.parquet", weights, **options)
    with pytest.raises(SailError, match=message):
        row_order(PairTable.open(path, ""), 0, groups=0, by_weight=True)


def test_a_weight_that_is_no_number_is_told_when_it_is_read(tmp_path):
    """The statistics of a file leave NaN out."""
    table = PairTable.open(write(tmp_path / "t.parquet", [float("nan"), *[1.0] * 40]))
    with pytest.raises(SailError, match="t.parquet has a weight that is negative, no number"):
        list(map(row_order(table, 0, groups=0, by_weight=True).__getitem__, range(100)))


def test_more_row_groups_than_are_kept_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sail_jax.data.row_groups._MOST_BYTES", 3000)
    monkeypatch.setattr("sail_jax.data.row_groups._CACHED_BYTES", 0)
    table = PairTable.open(write(tmp_path / "t.parquet", None))
    assert 1 <= table.cached < 30
    row_order(table, 0, groups=table.cached, by_weight=False)
    with pytest.raises(SailError, match=f"lower it to {table.cached}, or write smaller row groups"):
        row_order(table, 0, groups=table.cached + 1, by_weight=False)
