"""Batches are pure functions of (seed, step): exact resume, workers, host shares, epochs, bad records."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sail_jax import config as config_lib
from sail_jax.batch import TokenType
from sail_jax.data import features, pipeline
from sail_jax.data.hard_negative_table import query_key, write_negatives
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.data.prefetch import make_iterator
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.data.views import dataset_views, side_views
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import item_key

WHOLE = HostShare(0, 16, 1)


def same(left, right):
    for name, a, b in zip(left.arrays._fields, left.arrays, right.arrays, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def source(settings, share=WHOLE):
    return BatchSource(config_lib.build(settings), share)


def test_a_batch_is_a_function_of_the_step(settings):
    first, second = source(settings), source(settings)
    for step in (3, 0, 5, 3):
        same(first[step], second[step])
    with pytest.raises(AssertionError):
        same(first[0], first[1])
    settings.seed = 1
    with pytest.raises(AssertionError):
        same(source(settings)[0], first[0])


@pytest.mark.parametrize(
    "order", [{"by_weight": True}, {"shuffle_groups": 2}, {"by_weight": True, "shuffle_groups": 2}]
)
def test_rows_by_weight_and_by_row_groups_are_functions_of_the_step(settings, tmp_path, order):
    rows = pq.read_table(f"{settings.data.dir}/tables/copair.parquet").filter(pc.field("split") == "train")
    weighted = rows.append_column("weight", pa.array(np.arange(len(rows)) % 3, pa.float32())).replace_schema_metadata(
        None
    )
    pq.write_table(weighted, tmp_path / "a.parquet", row_group_size=10)
    table = {"table": str(tmp_path / "a.parquet"), "patterns": ("T->T",)}
    settings.data.datasets = {"copair": table | order}
    first, second = source(settings), pickle.loads(pickle.dumps(source(settings)))
    for step in (3, 0, 5):
        same(first[step], second[step])
    read = Counter(line for step in range(len(rows) // 16) for line in first.records(step))
    lines = [(f"copair: {row['query_id']} -> {row['target_id']}", row["weight"]) for row in weighted.to_pylist()]
    if "by_weight" in order:
        assert read.keys() <= {line for line, weight in lines if weight}
    else:  # an epoch, but for less than a batch
        assert not read - Counter(line for line, _ in lines)
    before = first.fingerprint()
    assert before["orders"]["copair"].keys() == {"by_weight", "shuffle_groups", "table"}
    settings.data.datasets = {"copair": table}
    assert "orders" not in source(settings).fingerprint()
    settings.data.datasets = {"copair": table | order}
    pq.write_table(weighted.slice(0, len(rows) - 1), tmp_path / "a.parquet", row_group_size=10)
    assert source(settings).fingerprint()["orders"] != before["orders"]


def test_weights_of_sequences_are_refused(settings, tmp_path):
    row = {"user_id": ["u"], "item_ids": [["a"]], "target_id": ["b"], "split": ["train"]}
    write_sequences(tmp_path / "s.parquet", [pa.table(row)])
    settings.data.datasets = {"s": {"kind": "sequences", "table": str(tmp_path / "s.parquet"), "by_weight": True}}
    with pytest.raises(SailError, match="config.data.datasets.s.by_weight draws rows of pairs; leave it out"):
        source(settings)


def test_texts_that_are_kept_are_those_of_their_side(settings):
    """An item comes as a query and as a target, with other fields and another instruction."""
    copair = settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",), "query_fields": ("title",)}
    settings.data.datasets = {"copair": copair | {"target_fields": ("tags", "asr"), "target_instruction": "Other."}}
    used = source(settings)
    steps = range(30)
    for step in steps:
        used[step]
    assert used._texts
    for step in steps[-3:]:
        same(used[step], source(settings)[step])


@pytest.mark.slow
def test_every_record_comes_once_per_epoch_at_any_number_of_workers(settings):
    """Text alone: decoding media takes longer than what this asks; the test that follows has them."""
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    rows = len(source(settings)._sets[0].table)
    settings.data.batch_size = size = next(size for size in range(5, rows) if rows % size == 0)
    settings.train.steps = 2 * rows // size
    whole, share = {}, HostShare(0, size, 1)
    for workers in (0, 3):
        settings.data.workers = workers
        config = config_lib.build(settings)
        batches = BatchSource(config, share)
        loaded = list(make_iterator(batches, config, 0))
        assert [batch.step for batch in loaded] == list(range(settings.train.steps))
        whole[workers] = loaded
        for batch, plain in zip(loaded, whole[0], strict=True):
            same(batch, plain)
    keys = np.concatenate([batch.arrays.item_keys for batch in whole[3]]).reshape(2, rows, -1)
    table = batches._sets[0].table
    expected = Counter((table[i].query_id, table[i].target_id) for i in range(rows))
    ids = {item_key(item_id): item_id for pair in expected for item_id in pair}
    for epoch in keys:
        pairs = epoch.reshape(rows, 2, 2).astype(np.uint64)
        sides = (pairs[..., 0] << np.uint64(32) | pairs[..., 1]).tolist()
        assert Counter((ids[query], ids[target]) for query, target in sides) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_iterator_sees_exactly_the_batches_that_are_left(settings, workers):
    settings.data.workers = workers
    config = config_lib.build(settings)
    whole = source(settings)
    resumed = list(make_iterator(whole, config, 2))
    assert [loaded.step for loaded in resumed] == [2, 3, 4, 5]  # every batch once, in order
    for loaded in resumed:
        same(loaded, whole[loaded.step])


@pytest.mark.slow
def test_a_closed_iterator_leaves_neither_workers_nor_shared_memory(settings, monkeypatch):
    """Signals, as a scheduler sends them to all processes of a job, come before a worker has begun, and after."""
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    start = BaseProcess.start

    def start_and_signal(process):
        start(process)
        for number in stops:
            os.kill(process.pid, number)

    monkeypatch.setattr(BaseProcess, "start", start_and_signal)
    settings.data.workers = 2
    before = shared_memory()
    batches = make_iterator(source(settings), config_lib.build(settings), 0)
    next(batches), next(batches)  # one of each worker: both have begun
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(stops)
    for worker in multiprocessing.active_children():
        for number in stops:
            os.kill(worker.pid, number)
    assert len(list(batches)) == 4
    batches.close()
    assert not multiprocessing.active_children()
    assert not shared_memory() - before


def shared_memory():
    """What Grain and what ours name so."""
    return {path for pattern in ("psm_*", "sail_jax-*") for path in Path("/dev/shm").glob(pattern)}


KILLED = """
import os, signal, sys, multiprocessing
from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.data.prefetch import make_iterator
if __name__ == "__main__":
    config = config_lib.load(sys.argv[1])
    next(batches := make_iterator(BatchSource(config, HostShare(0, 16, 1)), config, 0))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(settings, tmp_path):
    settings.data.workers = 2
    config_lib.save(config_lib.build(settings), tmp_path / "config.json")
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "config.json")]
    before = shared_memory()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL
    workers = [Path("/proc") / pid for pid in done.stdout.split()]
    deadline = time.monotonic() + 20
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(worker.exists() for worker in workers)
    assert not shared_memory() - before


def test_hosts_draw_the_same_data_set_and_split_the_batch(settings):
    settings.data.field_dropout = 0.5  # so that the draws of a row must not depend on the host that prepares it
    for dataset in settings.data.datasets.values():
        dataset.correct_popularity = 1.0
    whole = source(settings)
    parts = [source(settings, HostShare(start, start + 4, 1)) for start in range(0, 16, 4)]
    for step in range(6):
        expected, loaded = whole[step].arrays, [part[step].arrays for part in parts]
        assert len({int(d) for d in expected.dataset}) == 1  # the whole global batch comes from one data set
        names = "tokens", "token_types", "item_keys", "text_keys", "valid", "scores", "dataset", "log_frequency"
        for name in names:
            joined = np.concatenate([getattr(part, name) for part in loaded])
            np.testing.assert_array_equal(joined, getattr(expected, name))
        assert sum((part.frame_item >= 0).sum() for part in loaded) == (expected.frame_item >= 0).sum()


@pytest.mark.parametrize("sampling", ["specialized", "mixed"])
def test_batches_carry_the_log_frequencies_of_their_items(settings, sampling, tmp_path):
    """Of a set that corrects for popularity; in a mixed batch, of all that the sets draw together."""
    settings.data.datasets.copair.update(correct_popularity=0.5, negatives=str(tmp_path / "n.parquet"))
    settings.data.datasets.copair.hard_negatives = 1
    settings.data.sampling = sampling
    path = Path(settings.data.dir)
    tables = {name: PairTable.open(path / entry.table) for name, entry in settings.data.datasets.items()}
    rows = {name: [table[i] for i in range(len(table))] for name, table in tables.items()}
    queries = sorted({pair.query_id for pair in rows["copair"]}, key=lambda q: query_key(q, None))
    write_negatives(tmp_path / "n.parquet", ((q, None, queries[:2], [0.5] * 2) for q in queries), {})
    batches = source(settings)
    step = next(step for step in range(6) if batches.examples(step)[0][0] == 0)
    arrays, examples = batches[step].arrays, batches.examples(step)
    shares = {"copair": 2 / 3, "search": 1 / 3} if sampling == "mixed" else {"copair": 1.0}
    by_side = [Counter(), Counter()]
    for name, share in shares.items():
        for pair in rows[name]:
            for side, key in enumerate((pair.query_id or pair.query_text, pair.target_id)):
                by_side[side][key] += share / len(rows[name])
    for row, (dataset, number) in enumerate(examples):
        pair = batches._sets[dataset].pair(number)
        expected = np.log([by_side[0][pair.query_id or pair.query_text], by_side[1][pair.target_id]])
        np.testing.assert_allclose(arrays.log_frequency[row, :2], expected, rtol=1e-5)
        # Each of the two is drawn by half of the rows, unless it is the target of one.
        np.testing.assert_allclose(
            arrays.log_frequency[row, 2], np.log(0.5) if arrays.valid[row, 2] else 0.0, rtol=1e-5
        )
    if sampling == "specialized":
        other = next(step for step in range(6) if batches.examples(step)[0][0] == 1)
        assert batches[other].arrays.log_frequency is None
        assert batches.fingerprint()["frequencies"].keys() == {"copair"}
    settings.data.datasets.copair.correct_popularity = 0.0
    plain = source(settings)
    assert plain[step].arrays.log_frequency is None and "frequencies" not in plain.fingerprint()


def test_searches_that_correct_for_popularity_get_a_note(settings):
    assert not source(settings).notes
    for dataset in settings.data.datasets.values():
        dataset.correct_popularity = 1.0
    (note,) = source(settings).notes
    assert note.startswith("config.data.datasets.search.correct_popularity is 1.0") and "Set it to 0" in note


def test_frequencies_follow_the_weights_of_the_config(settings):
    batches = source(settings)
    drawn = Counter(batches.examples(step)[0][0] for step in range(3000))
    np.testing.assert_allclose(drawn[0] / 3000, 2 / 3, atol=0.03)


def test_every_row_comes_once_per_epoch_in_an_order_of_its_own(settings):
    settings.data.datasets = {"search": settings.data.datasets["search"]}
    dataset = source(settings)._sets[0]
    rows = len(dataset.table)
    epochs = [[dataset.pair(epoch * rows + i) for i in range(rows)] for epoch in range(2)]
    everything = Counter(dataset.table[i] for i in range(rows))
    assert Counter(epochs[0]) == Counter(epochs[1]) == everything
    assert epochs[0] != epochs[1]


def test_examples_of_a_data_set_are_consecutive_whatever_is_drawn_between(settings):
    batches = source(settings)
    seen = {0: [], 1: []}
    for step in range(50):
        for dataset, example in batches.examples(step):
            seen[dataset].append(example)
    for examples in seen.values():
        assert examples == list(range(len(examples)))


def test_mixed_sampling_mixes_inside_the_batch(settings):
    settings.data.sampling = "mixed"
    batches = source(settings)
    assert any(len(set(batches[step].arrays.dataset.tolist())) == 2 for step in range(3))
    parts = [source(settings, HostShare(start, start + 8, 1)) for start in (0, 8)]
    for step in range(3):
        assert parts[0].examples(step) + parts[1].examples(step) == batches.examples(step)


def test_a_frame_budget_bounds_the_flat_axis(settings):
    settings.data.frame_budget = 1.0
    tight = source(settings)
    step = next(s for s in range(6) if tight.examples(s)[0][0] == 0)
    loaded = tight[step]
    assert loaded.arrays.frames.shape[0] == 32 and loaded.media_cut > 0 and loaded.media_shared == 0
    settings.data.encode_once = True
    once = next(loaded for loaded in map(source(settings).__getitem__, range(step, step + 60)) if loaded.media_shared)
    assert once.media_cut < tight[once.step].media_cut and not source(settings).notes
    settings.data.frame_budget = 0.0
    assert source(settings)[step].arrays.frames.shape[0] == 64
    (note,) = source(settings).notes
    assert note.startswith("config.data.encode_once saves nothing") and "set config.data.frame_budget" in note


def test_a_text_query_takes_no_frames(settings):
    batches = source(settings)
    step = next(s for s in range(6) if batches.examples(s)[0][0] == 1)
    arrays = batches[step].arrays
    assert arrays.frames.shape[0] == 32  # the target side alone, two frames each
    assert np.all(arrays.frame_item[arrays.frame_item >= 0] % 2 == 1)


def test_texts_are_tokenized_once_and_few_are_kept(settings, monkeypatch):
    """The batches are those of a source that keeps nothing; fields that are dropped by a draw are not kept."""
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}
    kept = source(settings)
    batches = [kept[step] for step in (0, 1, 0)]
    monkeypatch.setattr(kept._store, "get", None)
    same(kept[1], batches[1])
    monkeypatch.setattr(pipeline, "_KEPT_TEXTS", 3)
    few = source(settings)
    for step, batch in zip((0, 1, 0), batches, strict=True):
        same(few[step], batch)
    assert len(few._texts) == 3
    settings.data.field_dropout = 0.5
    dropping = source(settings)
    dropping[0]
    assert not dropping._texts


def test_field_dropout_is_seeded(settings):
    settings.data.field_dropout = 0.5
    same(source(settings)[0], source(settings)[0])
    dropped = source(settings)[0].arrays
    settings.data.field_dropout = 0.0
    kept = source(settings)[0].arrays
    assert (dropped.token_types > 0).sum() < (kept.token_types > 0).sum()
    for name in ("item_keys", "text_keys"):  # what counts as the same content does not change
        np.testing.assert_array_equal(getattr(dropped, name), getattr(kept, name))


def test_a_bad_record_is_masked_counted_and_reported(settings, monkeypatch):
    calls = []

    def sometimes(data, size, *, max_pixels):
        calls.append(data)
        if len(calls) == 3:
            raise BadRecordError("the image is damaged", remedy="Repair it")
        return decode_image(data, size, max_pixels=max_pixels)

    monkeypatch.setattr(features, "decode_image", sometimes)
    batches = source(settings)
    step = next(s for s in range(6) if batches.examples(s)[0][0] == 0)
    loaded = batches[step]
    assert (~loaded.arrays.valid).sum() == 1
    assert len(loaded.bad_records) == 1
    for part in ("items", "record", "frames[", "damaged", "Repair it"):
        assert part in loaded.bad_records[0]


def test_unknown_ids_are_bad_records(settings, world, tmp_path):
    known = PairTable.open(world / "tables" / "copair.parquet", "train")[0].target_id
    rows = [(Pair(known, None, known if i else "nobody"), "train") for i in range(16)]
    write_pairs(tmp_path / "pairs.parquet", rows)
    settings.data.datasets = {"mine": {"table": str(tmp_path / "pairs.parquet")}}
    loaded = source(settings)[0]
    assert len(loaded.bad_records) == 1 and "nobody" in loaded.bad_records[0]
    assert (~loaded.arrays.valid).sum() == 1


def test_a_side_shows_what_its_patterns_need(settings):
    settings.data.datasets.copair.patterns = ("V->T", "VA->T")
    config = config_lib.build(settings)
    assert [view.modalities for view in dataset_views(config, "copair")] == ["VA", "T"]
    batches = source(settings)
    step = next(s for s in range(6) if batches.examples(s)[0][0] == 0)
    types = batches[step].arrays.token_types
    assert not np.any(types[:, 0] == TokenType.TEXT) and not np.any(types[:, 1] == TokenType.VISION)
    assert np.any(types[:, 0] == TokenType.VISION) and np.any(types[:, 1] == TokenType.TEXT)


def test_a_unified_instruction_takes_the_place_of_all(settings):
    settings.prompt.unified = "One for all."
    config = config_lib.build(settings)
    views = [view for name in config.data.datasets for view in dataset_views(config, name)]
    assert {view.instruction for view in views} == {"One for all."}


def mined(settings, world, path, *, negatives):
    """Gives the data set copair a table of hard negatives: the same ids for every query but one."""
    table = PairTable.open(world / "tables" / "copair.parquet", "train")
    queries = sorted({table[i].query_id for i in range(len(table))}, key=lambda q: query_key(q, None))
    write_negatives(path, ((q, None, negatives, [0.5] * len(negatives)) for q in queries[1:]), {})
    settings.data.datasets.copair.update(negatives=str(path), hard_negatives=2)
    return queries[0]


@pytest.mark.slow
def test_hard_negatives_are_shown_behind_the_target(settings, world, tmp_path):
    ids = [item.item_id for item in (ItemStore.open(world / "items")[i] for i in range(3))]
    without = mined(settings, world, tmp_path / "hard.parquet", negatives=ids)
    settings.data.batch_size = 64
    share = HostShare(0, 64, 2)
    batches = BatchSource(config_lib.build(settings), share)
    step = next(s for s in range(6) if batches.examples(s)[0][0] == 0)
    arrays = batches[step].arrays
    keys = [[item_key(i) >> 32, item_key(i) & 0xFFFFFFFF] for i in ids]
    assert arrays.tokens.shape[:2] == (64, 4) and arrays.frames.shape[0] == 64 * 4 * 2
    has_none = (arrays.item_keys[:, 0] == [item_key(without) >> 32, item_key(without) & 0xFFFFFFFF]).all(-1)
    shown = arrays.item_keys[:, 2:].tolist()
    for row, (first, second) in enumerate(shown):
        target = arrays.item_keys[row, 1].tolist()
        if has_none[row]:
            assert not arrays.valid[row, 2:].any()
        else:
            assert first in keys and first != second and target not in (first, second)
    assert len({str(pair) for pair in shown}) > 2  # drawn anew for each pair
    search = next(s for s in range(6) if batches.examples(s)[0][0] == 1)
    assert batches[search].arrays.tokens.shape[1] == 2
    parts = [BatchSource(config_lib.build(settings), HostShare(start, start + 32, 1)) for start in (0, 32)]
    joined = np.concatenate([part[step].arrays.item_keys for part in parts])
    np.testing.assert_array_equal(joined, arrays.item_keys)
    settings.data.sampling = "mixed"
    mixed = BatchSource(config_lib.build(settings), share)[0].arrays
    assert mixed.tokens.shape[1] == 4 and not mixed.valid[mixed.dataset == 1, 2:].any()


def test_random_negatives_are_drawn_from_all_items_alike(settings, world, tmp_path):
    ids = [item.item_id for item in (ItemStore.open(world / "items")[i] for i in range(3))]
    mined(settings, world, tmp_path / "hard.parquet", negatives=ids)
    settings.data.datasets.copair.update(random_negatives=3, correct_popularity=1.0, patterns=("T->T",))
    settings.data.datasets = {"copair": settings.data.datasets.copair}
    batches, store = source(settings), ItemStore.open(world / "items")
    loaded = [batches[step].arrays for step in range(12)]
    assert loaded[0].tokens.shape[:2] == (16, 2 + 2 + 3)
    halves = np.concatenate([arrays.item_keys[:, 4:] for arrays in loaded]).reshape(-1, 2).astype(np.uint64)
    drawn = Counter((halves[:, 0] << np.uint64(32) | halves[:, 1]).tolist())
    everything = {item_key(item_id) for item_id in store.item_ids()}
    # 576 draws of 160 items: four of them are missed on average, and hardly one comes sixteen times.
    assert drawn.keys() <= everything and len(drawn) > len(store) - 20 and max(drawn.values()) < 16
    np.testing.assert_allclose(loaded[0].log_frequency[:, 4:], -np.log(len(store)), rtol=1e-6)
    part = source(settings, HostShare(8, 16, 1))[3].arrays
    np.testing.assert_array_equal(part.item_keys, loaded[3].item_keys[8:])
    assert batches.fingerprint()["items"] == len(store)
    settings.data.datasets.copair.kind = "sequences"
    with pytest.raises(SailError, match="'sequences', which takes no random_negatives"):
        side_views(config_lib.build(settings), "copair")


def test_negatives_of_another_data_set_are_refused(settings, world, tmp_path):
    mined(settings, world, tmp_path / "hard.parquet", negatives=["item000001"])
    copair = settings.data.datasets.copair
    settings.data.datasets.search.update(negatives=copair.negatives, hard_negatives=1)
    copair.hard_negatives = 0
    with pytest.raises(SailError, match="mined for other queries"):
        source(settings)


def test_what_was_mined_belongs_to_the_fingerprint(settings, world, tmp_path):
    mined(settings, world, tmp_path / "hard.parquet", negatives=["item000001"])
    before = source(settings).fingerprint()
    assert before["negatives"]["copair"]["queries"] > 10
    mined(settings, world, tmp_path / "less.parquet", negatives=[])
    with pytest.raises(SailError, match="no hard negatives"):
        source(settings)


def test_scores_come_with_their_pairs(settings):
    settings.data.datasets = {"score": {"table": "tables/score.parquet", "patterns": ("T->O",)}}
    batches = source(settings)
    dataset = batches._sets[0]
    expected = [dataset.pair(example).score for _, example in batches.examples(0)]
    np.testing.assert_array_equal(batches[0].arrays.scores, np.array(expected, np.float32))
    assert len(set(expected)) > 1


def test_sets_without_weight_are_not_opened(settings):
    settings.data.datasets.search.update(weight=0.0, table="tables/later.parquet")
    batches = source(settings)
    assert {batches.datasets(step) for step in range(20)} == {(0,)}
    settings.data.sampling = "mixed"
    assert source(settings).datasets(0) == (0,)


def test_weights_of_a_file_go_before_those_of_the_config(settings, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"weights": {"copair": 0.2, "search": 0.8}}')
    settings.data.weights = str(path)
    batches = source(settings)
    drawn = Counter(batches.datasets(step) for step in range(3000))
    np.testing.assert_allclose(drawn[(1,)] / 3000, 0.8, atol=0.03)


def test_a_source_pickles(settings):
    batches = source(settings)
    same(pickle.loads(pickle.dumps(batches))[1], batches[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.data.update(batch_size=4096), "batch_size"),
        (lambda s: s.data.datasets.update(copair={"table": "tables/nothing.parquet"}), "nothing"),
        (lambda s: s.data.datasets.copair.update(split="trian"), "trian"),
        (lambda s: s.data.update(sampling="both"), "sampling"),
        (lambda s: s.data.update(dir=""), "data.dir"),
        (lambda s: s.data.update(dir="/nowhere"), "/nowhere"),
        (lambda s: s.data.datasets.copair.update(patterns=("VX->T",)), "datasets.copair.patterns"),
        (lambda s: s.data.datasets.copair.update(hard_negatives=2), "names no table"),
        (lambda s: s.data.datasets.copair.update(hard_negatives=2, negatives="none.parquet"), "none.parquet"),
        (lambda s: s.data.update(weights="none.json"), "none.json"),
        (lambda s: s.data.datasets.copair.update(loss_weights={"cosent": 1.0}), "has no scores"),
        (lambda s: s.data.datasets.search.update(patterns=("VT->O",)), "are texts.*'T->O'"),
        (lambda s: s.data.datasets.copair.update(query_fields=("headline",)), "headline"),
    ],
)
def test_wrong_settings_are_explained(settings, change, message):
    with settings.unlocked():
        change(settings)
    with pytest.raises(SailError, match=message):
        source(settings)


def test_no_data_sets(settings):
    config = config_lib.build(settings)
    empty = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets={}))
    with pytest.raises(SailError, match="datasets"):
        BatchSource(empty, WHOLE)
