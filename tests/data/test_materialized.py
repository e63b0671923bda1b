"""Materialized records: the batches of the table, bit for bit; a writer that was killed; records of something else."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from test_pipeline import mined, same

from sail_jax import config as config_lib
from sail_jax.data.pipeline import BatchSource, HostShare, open_store
from sail_jax.data.prefetch import make_iterator
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.data.training_set import materialize
from sail_jax.errors import SailError

WHOLE = HostShare(0, 16, 1)


@pytest.fixture
def written(settings, tmp_path):
    """The tiny experiment with two epochs of both of its data sets materialized, in shards of 40."""
    settings.ingest.items_per_shard = 40
    settings.train.steps = 12
    config = config_lib.build(settings)
    for name in config.data.datasets:
        materialize(config, name, tmp_path / name, open_store(config), epochs=2)
        settings.data.datasets[name].materialized = str(tmp_path / name)
    return settings


def of_the_table(settings):
    config = config_lib.build(settings)
    datasets = {name: dataclasses.replace(s, materialized="") for name, s in config.data.datasets.items()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=datasets))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["specialized", "mixed"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_table(written, sampling, workers):
    written.data.update(sampling=sampling, workers=workers, field_dropout=0.5)
    expected = BatchSource(of_the_table(written), WHOLE)
    config = config_lib.build(written)
    batches = BatchSource(config, WHOLE)
    assert batches.fingerprint() == expected.fingerprint()
    loaded = list(make_iterator(batches, config, 3))  # resumed
    assert [batch.step for batch in loaded] == list(range(3, 12))
    for batch in loaded:
        same(batch, expected[batch.step])


@pytest.mark.slow
def test_the_store_is_not_read_but_for_hard_negatives(written, world, tmp_path, monkeypatch):
    mined(written, world, tmp_path / "hard.parquet", negatives=["item000001", "item000002", "item000003"])
    expected = BatchSource(of_the_table(written), WHOLE)
    batches = BatchSource(config_lib.build(written), WHOLE)
    plain = [expected[step] for step in range(6)]
    read, get = [], ItemStore.get
    monkeypatch.setattr(ItemStore, "get", lambda self, item_id: read.append(item_id) or get(self, item_id))
    for batch in plain:
        same(batch, batches[batch.step])
    assert set(read) == {"item000001", "item000002", "item000003"}


def test_items_that_are_not_in_the_store_stay_bad_records(settings, world, tmp_path):
    known = PairTable.open(world / "tables" / "copair.parquet", "train")[0].target_id
    rows = [(Pair(known, None, known if i else "nobody"), "train") for i in range(16)]
    write_pairs(tmp_path / "pairs.parquet", rows)
    settings.data.datasets = {"mine": {"table": str(tmp_path / "pairs.parquet")}}
    settings.train.steps = 1
    config = config_lib.build(settings)
    materialize(config, "mine", tmp_path / "records", open_store(config), epochs=1)
    settings.data.datasets.mine.materialized = str(tmp_path / "records")
    loaded = BatchSource(config_lib.build(settings), WHOLE)[0]
    same(loaded, BatchSource(config, WHOLE)[0])
    assert len(loaded.bad_records) == 1 and "nobody" in loaded.bad_records[0]


KILLED = """
import os, signal, sys
from sail_jax import config as config_lib
from sail_jax.data import materialized
from sail_jax.data.pipeline import open_store
from sail_jax.data.training_set import materialize
encode, calls = materialized._encode, []
def encode_or_die(*arguments):
    calls.append(1)
    if len(calls) == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)
materialized._encode = encode_or_die
config = config_lib.load(sys.argv[1])
materialize(config, "copair", sys.argv[2], open_store(config), epochs=2)
"""


@pytest.mark.slow
def test_a_writer_that_was_killed_goes_on_after_its_last_whole_shard(written, tmp_path):
    config, again = config_lib.build(written), tmp_path / "again"
    config_lib.save(config, tmp_path / "config.json")
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "config.json"), str(again)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=200).returncode == -9
    done = files(again)
    assert {name for name in done if name.startswith("records")} == {
        "records-00000.array_record",
        "records-00001.array_record",
        "records-00002.array_record.partial",
    }
    written.data.datasets.copair.materialized = str(again)
    with pytest.raises(SailError, match="Run the same `materialize` again"):
        BatchSource(config_lib.build(written), WHOLE)
    kept = (again / "records-00000.array_record").stat().st_mtime_ns
    materialize(config, "copair", again, open_store(config), epochs=2)
    assert files(again) == files(tmp_path / "copair")
    assert (again / "records-00000.array_record").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_more_epochs_than_were_written_are_refused_before_training(written):
    written.train.steps = 200
    with pytest.raises(SailError, match=r"materialize \d+ epochs, not 2"):
        BatchSource(config_lib.build(written), WHOLE)


@pytest.mark.slow
def test_records_of_something_else_are_refused(written, world, tmp_path):
    config = config_lib.build(written)
    written.seed = 1
    with pytest.raises(SailError, match="other materialized records: order_seed 0, not 1"):
        BatchSource(config_lib.build(written), WHOLE)
    written.seed = 0
    table = PairTable.open(world / "tables" / "copair.parquet", "train")
    rows = [table[i] for i in range(len(table))]
    for name, changed in {"fewer": rows[1:], "other": [*rows[1:], rows[0]]}.items():
        write_pairs(tmp_path / f"{name}.parquet", ((pair, "train") for pair in changed))
        written.data.datasets.copair.table = str(tmp_path / f"{name}.parquet")
        with pytest.raises(SailError, match="other materialized records.*table"):
            BatchSource(config_lib.build(written), WHOLE)
    written.data.datasets.copair.update(table="tables/copair.parquet", materialized=str(tmp_path / "nowhere"))
    with pytest.raises(SailError, match="Write them with `materialize`"):
        BatchSource(config_lib.build(written), WHOLE)
    with pytest.raises(SailError, match="other materialized records.*epochs 2, not 1"):
        materialize(config, "copair", tmp_path / "copair", open_store(config), epochs=1)
    with pytest.raises(SailError, match="is not empty"):
        materialize(config, "copair", world, open_store(config), epochs=1)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "identity.json.partial").write_text("{")
    materialize(config, "copair", tmp_path / "killed", open_store(config), epochs=1)
    assert not list((tmp_path / "killed").glob("*.partial"))


def test_damage_is_reported(written, tmp_path):
    config = config_lib.build(written)
    shard = tmp_path / "copair" / "records-00001.array_record"
    data = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    data[len(data) // 4 : len(data) // 2] ^= 255
    shard.write_bytes(data.tobytes())
    dataset = BatchSource(config, WHOLE)._sets[0]
    with pytest.raises(SailError, match=r"records-00001.*damaged"):
        for example in range(40, 80):
            dataset.example(example)
