"""Runs, items, tables and embeddings in a bucket of a local S3 server; each mirror stands for another host."""

import dataclasses
import json
import os

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from moto.server import ThreadedMotoServer

from sail_jax import buckets, files
from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.ingest.join import join_vectors
from sail_jax.data.store import ItemStore, ItemStoreWriter
from sail_jax.data.synthetic.world import make_world
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.errors import DiskError, OwnedError, SailError
from sail_jax.items import Item
from sail_jax.runs import ownership, uploads
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.sweeps import Sweep, SweepFolder, expand, grid
from sail_jax.sweeps.begin import write_sweep
from sail_jax.sweeps.check import check_members
from sail_jax.training.loop import train
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, part_path, write_info, write_part
from training_runs import finish, kill_when, save_untrained, start


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """The client of an empty bucket named "bucket"; the environment leads to it."""
    found = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    found |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    on_host(monkeypatch, tmp_path, "first")
    bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
    yield bucket
    bucket.objects.all().delete()


def on_host(monkeypatch, tmp_path, name):
    """Continues as another host would: with a mirror of its own, and new connections."""
    monkeypatch.setenv("SAIL_JAX_BUCKETS", str(tmp_path / name))
    buckets._file_system.cache_clear()


def keys(bucket):
    return sorted(each.key for each in bucket.objects.all())


def test_an_address_has_a_place_and_a_place_has_an_address(monkeypatch, tmp_path):
    on_host(monkeypatch, tmp_path, "first")
    for text in ("s3://bucket/a/b", "s3:/bucket/a/b", "S3://bucket/a/b/"):
        assert buckets.place(text) == tmp_path / "first/s3/bucket/a/b"
    path = buckets.place("gs://bucket/a")
    assert buckets.address(path) == "gs://bucket/a"
    assert buckets.with_addresses(f"{path}/x is gone") == "gs://bucket/a/x is gone"
    assert not buckets.address(path / "x.partial" / "y") and not buckets.address(tmp_path)
    assert buckets.place("runs/x") == buckets.Path("runs/x")
    for wrong in ("az://bucket/a", "s3://", "s3://bucket/../../x", "s3://bucket//x"):
        with pytest.raises(SailError):
            buckets.place(wrong)


def test_what_is_committed_is_in_the_bucket_and_on_every_host(bucket, monkeypatch, tmp_path):
    folder = buckets.place("s3://bucket/x")
    folder.mkdir(parents=True)
    for text in ("one", "two"):
        files.commit_bytes(folder / "a", text.encode())
    with files.partial_folder(folder / "b") as partial:
        (partial / "c").write_text("three")
    assert keys(bucket) == ["x/a", "x/b/c"]
    on_host(monkeypatch, tmp_path, "second")
    folder = buckets.place("s3://bucket/x")
    assert not folder.exists() and buckets.names(folder) == {"a", "b/c"}
    buckets.fetch(folder, leave_out=lambda name: name == "b/c")
    assert (folder / "a").read_text() == "two" and not (folder / "b").exists()
    buckets.fetch(folder)
    assert (folder / "b/c").read_text() == "three"
    bucket.put_object(Key="x/a", Body=b"new")
    bucket.Object("x/b/c").delete()
    buckets.fetch(folder)
    assert (folder / "a").read_text() == "new" and not (folder / "b/c").exists()
    buckets.remove(folder)
    assert not keys(bucket) and not folder.exists()


def test_a_cut_upload_leaves_no_file_and_no_part_of_a_folder(bucket, monkeypatch):
    folder = buckets.place("s3://bucket/x")
    folder.mkdir(parents=True)
    put = buckets.put

    def cut(source, path):
        if path.name in ("a", "2"):
            raise KeyboardInterrupt
        put(source, path)

    monkeypatch.setattr(buckets, "put", cut)
    with pytest.raises(KeyboardInterrupt):
        files.commit_bytes(folder / "a", b"one")
    assert not (folder / "a").exists()
    with pytest.raises(KeyboardInterrupt), files.partial_folder(folder / "b") as partial:
        for name in "123":
            (partial / name).write_text(name)
    assert "x/b/1" in keys(bucket) and not buckets.names(folder) and not buckets.names(folder / "b")
    monkeypatch.setattr(buckets, "put", put)
    with files.partial_folder(folder / "b") as partial:
        (partial / "4").write_text("4")
    assert keys(bucket) == ["x/b/4"]
    (folder / "b/4").unlink()
    (folder / "b").rmdir()  # another host knows nothing of it
    with pytest.raises(SailError, match="s3://bucket/x/b is not empty"), files.partial_folder(folder / "b"):
        pass
    assert keys(bucket) == ["x/b/4"]


def test_the_mirror_keeps_what_it_has_added_until_the_bucket_has_something_new(bucket):
    path = buckets.place("s3://bucket/log")
    path.parent.mkdir(parents=True)
    files.commit_bytes(path, b"1\n")
    with path.open("a") as file:
        file.write("2\n")
    buckets.fetch(path)
    assert path.read_text() == "1\n2\n"
    buckets.put_changed(path)
    assert bucket.Object("log").get()["Body"].read() == b"1\n2\n"
    bucket.put_object(Key="log", Body=b"3\n")
    buckets.fetch(path)
    assert path.read_text() == "3\n"


@pytest.mark.parametrize(
    ("environment", "address", "said", "kind"),
    [
        ({}, "s3://nobody-made-it/x", "there is no bucket nobody-made-it. Make it", SailError),
        ({"AWS_ACCESS_KEY_ID": None}, "s3://bucket/x", "no credentials for it; set AWS_ACCESS_KEY_ID", SailError),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://bucket/x", "Check the network, AWS_ENDPOINT_URL", DiskError),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said_in_one_line(
    bucket, environment, address, said, kind, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    buckets._file_system.cache_clear()
    assert main(["evaluate", "--workdir", address]) == kind.status
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address}") and said in error and error.count("\n") == 1


def test_denied_access_and_a_missing_package_are_said_in_one_line(bucket, monkeypatch):
    def denied(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(buckets._file_system("s3", os.getpid()), "find", denied)
    with pytest.raises(SailError, match="s3://bucket/x: access is denied. Give these credentials the right to list"):
        EmbeddingSet("s3://bucket/x")
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SailError, match=r"gs:// needs the package gcsfs: pip install 'sail_jax\[gcs\]'"):
        RunDirectory("gs://bucket/x")


def test_items_tables_and_embeddings_are_read_where_they_were_not_written(bucket, monkeypatch, tmp_path):
    writer = ItemStoreWriter(buckets.place("s3://bucket/items"))
    ids = [f"item{i}" for i in range(6)]
    for shard in range(3):
        writer.write_shard(shard, [Item(name, text={"title": name * 9}) for name in ids[2 * shard :][:2]])
    writer.finalize(3)
    write_pairs(buckets.place("s3://bucket/tables/x.parquet"), [(Pair("item1", None, "item2"), "train")])
    z = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    folder = buckets.place("s3://bucket/vectors")
    folder.mkdir(parents=True)
    write_part(part_path(folder, 0), ids, z, "float32")
    write_info(folder, EmbeddingInfo("model", "f", 8, "float32", "VTA", (), ""))
    assert "tables/x.parquet" in keys(bucket) and not [key for key in keys(bucket) if "spool" in key]
    on_host(monkeypatch, tmp_path, "second")
    store = ItemStore.open("s3://bucket/items")
    assert not list(store.path.glob("*.array_record"))  # they come when they are read
    assert list(store.item_ids()) == ids and store.get("item3").text == {"title": "item3" * 9}
    assert [path.name for path in store.path.glob("*.array_record")] == ["items-00001.array_record"]
    assert PairTable.open(buckets.place("s3://bucket/tables/x.parquet"))[0].target_id == "item2"
    found, vectors = EmbeddingSet("s3://bucket/vectors").load()
    assert found == ids
    np.testing.assert_allclose(vectors, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-5)


def test_vectors_are_joined_to_items_in_a_bucket(bucket, monkeypatch, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},title {n}\n" for n in range(4)))
    pq.write_table(pa.table({"item_id": ["i2", "i0"], "vector": [[2.0], [0.5]]}), tmp_path / "late.parquet")
    config = config_lib.build({"ingest": {"source": {"path": "items.csv", "text": {"title": "title"}}}})
    ingest(config, tmp_path, "s3://bucket/data")
    on_host(monkeypatch, tmp_path, "second")
    join_vectors("s3://bucket/data", "late", tmp_path / "late.parquet", max_bad_records=0)
    on_host(monkeypatch, tmp_path, "third")
    store = ItemStore.open("s3://bucket/data/items")
    found = {item.item_id: item.id_embeddings["late"].tolist() for item in store if item.id_embeddings}
    assert found == {"i0": [0.5], "i2": [2.0]} and not [key for key in keys(bucket) if "partial" in key]


def test_shards_that_were_read_long_ago_make_room(bucket, monkeypatch, tmp_path):
    writer = ItemStoreWriter(buckets.place("s3://bucket/items"))
    for shard in range(3):
        writer.write_shard(shard, [Item(f"item{shard}", text={"title": "x" * 100_000})])
    writer.finalize(3)
    on_host(monkeypatch, tmp_path, "second")
    size = bucket.Object("items/items-00000.array_record").content_length
    monkeypatch.setenv("SAIL_JAX_BUCKETS_GB", str(2.5 * size / 1e9))
    store = ItemStore.open("s3://bucket/items")
    for name in ("item0", "item1", "item2", "item0"):  # a reader keeps what it has open
        assert store.get(name).item_id == name
    assert len(list(store.path.glob("*.array_record"))) == 2
    assert [item.item_id for item in ItemStore.open("s3://bucket/items")] == ["item0", "item1", "item2"]


@pytest.mark.slow
def test_one_process_at_a_time_owns_a_run_in_a_bucket(bucket, monkeypatch, tmp_path):
    # Times of a bucket are whole seconds, and a loaded machine beats late: the lease is many beats.
    monkeypatch.setattr(ownership, "_LEASE", 20.0)
    monkeypatch.setattr(ownership, "_BEAT", 0.3)
    with ownership._owning(RunDirectory("s3://bucket/run")):
        on_host(monkeypatch, tmp_path, "second")
        with pytest.raises(OwnedError), ownership._owning(RunDirectory("s3://bucket/run")):
            pass
        on_host(monkeypatch, tmp_path, "first")
        monkeypatch.setattr(ownership, "_kernel", lambda: "another host")
        with pytest.raises(OwnedError), ownership._owning(RunDirectory("s3://bucket/run")):
            pass
    assert not keys(bucket)
    dead = {"host": "gone", "kernel": "", "pid": 1, "started": "1", "since": "long ago", "owns": True}
    bucket.put_object(Key="run/owners/dead.json", Body=json.dumps(dead).encode())
    monkeypatch.setattr(ownership, "_LEASE", 2.0)
    with ownership._owning(RunDirectory("s3://bucket/run")):
        assert "run/owners/dead.json" not in keys(bucket)


class _OfTwo:
    """The first of two processes, the other of which sees or does not see what this one writes."""

    first = True

    def __init__(self, other):
        self._other = other

    def on_first(self, do):
        return do()

    def gather(self, value):
        return [value, self._other]


def test_several_hosts_without_a_shared_mirror_are_refused_before_anything_is_done(bucket, monkeypatch):
    run = buckets.place("s3://bucket/run")
    monkeypatch.setattr(uploads, "everyone", lambda: _OfTwo(False))
    config = config_lib.build(tiny.experiment("s3://bucket/data"))
    with pytest.raises(SailError, match="s3://bucket/run: several hosts save .* Set SAIL_JAX_BUCKETS to a folder"):
        train(config, run)
    assert not keys(bucket) and not [path for path in run.rglob("*") if path.is_file()]
    monkeypatch.setattr(uploads, "everyone", lambda: _OfTwo(True))
    uploads.require_one_mirror(RunDirectory(run))


def test_a_run_names_its_data_by_their_address(bucket, monkeypatch, tmp_path):
    def saved(run, data):
        found = RunDirectory(run)
        found.save_config(config_lib.build({"data": {"dir": str(data)}}))
        on_host(monkeypatch, tmp_path, run.rpartition("/")[2])
        again = RunDirectory(run)
        return json.loads(again.config.read_text())["data"]["dir"], again.load_config().data.dir

    assert saved("s3://bucket/one", "s3://bucket/data") == ("s3://bucket/data", "s3://bucket/data")
    assert saved(f"{tmp_path}/two", "s3://bucket/data") == ("s3://bucket/data", "s3://bucket/data")
    assert saved("s3://bucket/three", tmp_path) == (str(tmp_path), str(tmp_path))
    table = {"table": "s3://bucket/tables/x.parquet"}
    config = config_lib.build({"data": {"dir": "data", "datasets": {"x": table}}})
    assert buckets.place("data") / buckets.place(config.data.datasets["x"].table) == buckets.place(table["table"])
    within = saved("s3://bucket/four", "s3://bucket/four/data")
    assert within == ("data", str(buckets.place("s3://bucket/four/data")))


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_host_and_ends_the_same(bucket, monkeypatch, tmp_path, capsys):
    settings = tiny.experiment("s3://bucket/data")
    del settings.data.datasets["search"]  # another program to compile
    config = config_lib.build(settings)
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", "s3://bucket/data")
    config_lib.save(config, tmp_path / "config.json")

    def train(workdir, name):
        return start(tmp_path / "config.json", workdir, tmp_path / f"{name}.npz")

    on_host(monkeypatch, tmp_path, "second")
    finish(train(tmp_path / "run", "whole"))

    def saved():
        found = [key for key in keys(bucket) if key.startswith("run/checkpoints/")]
        return found and not any(key.endswith(".partial") for key in found)

    kill_when(train("s3://bucket/run", "killed"), saved)
    assert "run/checkpoints/6/commit_success.txt" not in keys(bucket)
    on_host(monkeypatch, tmp_path, "third")
    finish(train("s3://bucket/run", "resumed"))
    whole, resumed = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "resumed"))
    for leaf in whole.files:
        np.testing.assert_array_equal(whole[leaf], resumed[leaf])
    assert [line["step"] for line in read_training_log(RunDirectory("s3://bucket/run"))] == [1, 2, 4, 6]


@pytest.mark.slow
def test_members_of_a_sweep_read_data_in_a_bucket(bucket, monkeypatch, tmp_path):
    config = config_lib.build(tiny.experiment("s3://bucket/data"))
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", "s3://bucket/data")
    config_lib.save(config, tmp_path / "base.json")
    ingest(config, tmp_path / "raw", tmp_path / "data")
    sweep = Sweep(str(tmp_path / "base.json"), [grid("optimizer.peak", [1e-3, 2e-3])], name="s")
    on_host(monkeypatch, tmp_path, "second")
    checked = check_members(sweep, expand(sweep))
    assert {member.config.data.dir for member in checked} == {"s3://bucket/data"}
    folder = SweepFolder(tmp_path / "sweep")
    assert len(write_sweep(folder, sweep, checked)) == 2
    on_host(monkeypatch, tmp_path, "third")
    assert write_sweep(folder, sweep, check_members(sweep, expand(sweep))) == []
    assert config_lib.load(folder.config("peak=0.001,seed=0")).data.dir == "s3://bucket/data"
    there = dataclasses.replace(sweep, overrides=[f"data.dir={tmp_path / 'data'}"])
    assert {m.record.data for m in check_members(there, expand(there))} == {m.record.data for m in checked}


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_in_a_bucket_serves_hosts_that_have_nothing_of_it(bucket, monkeypatch, tmp_path, capsys):
    config = config_lib.build(tiny.experiment("s3://bucket/data"))
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", "s3://bucket/data")
    buckets.place("s3://bucket").mkdir(exist_ok=True)
    save_untrained(buckets.place("s3://bucket/run"), config)
    on_host(monkeypatch, tmp_path, "second")
    assert main(["embed", "--workdir", "s3://bucket/run", "--output", "s3://bucket/vectors"]) == 0
    assert "Written to s3://bucket/vectors" in capsys.readouterr().out
    on_host(monkeypatch, tmp_path, "third")
    assert main(["search", "--workdir", "s3://bucket/run", "--embeddings", "s3://bucket/vectors", "--text", "red"]) == 0
    assert "--embeddings s3://bucket/vectors" in capsys.readouterr().out
    on_host(monkeypatch, tmp_path, "fourth")
    assert main(["export", "--workdir", "s3://bucket/run", "--output", "s3://bucket/export"]) == 0
    assert {"export/model.safetensors", "export/modules.json"} <= set(keys(bucket))
    # The newest copy of a checkpoint counts, and a damaged one is not read.
    damaged = next(key for key in keys(bucket) if key.startswith("run/checkpoints/1/model/ocdbt.process_0/d/"))
    bucket.put_object(Key=damaged, Body=b"damaged")
    assert main(["evaluate", "--workdir", "s3://bucket/run"]) == 2
    assert "s3://bucket/run/checkpoints has no checkpoint that is whole (1: model/" in capsys.readouterr().err
