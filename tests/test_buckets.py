"""Runs, items, tables and embeddings in buckets of local servers, S3 and GCS; each mirror stands for another host."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from bucket_servers import GsServer, S3Server

from sail_jax import buckets, files
from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.cli.after_tables import print_after_tables
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


@pytest.fixture(scope="module", params=[S3Server, GsServer], ids=lambda of: of.scheme)
def server(request):
    """A server of buckets on this machine."""
    server = request.param()
    yield server
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """The server with an empty bucket named "bucket"; the environment leads to it."""
    server.lead_to(monkeypatch, tmp_path)
    on_host(monkeypatch, tmp_path, "first")
    server.make_bucket()
    yield server
    for key in server.objects():
        server.delete(key)


def on_host(monkeypatch, tmp_path, name):
    """Continues as another host would: with a mirror of its own, and new connections."""
    monkeypatch.setenv("SAIL_JAX_BUCKETS", str(tmp_path / name))
    buckets._file_system.cache_clear()


def at(bucket, path):
    """The address of a file or folder of the bucket."""
    return f"{bucket.scheme}://bucket/{path}"


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
    folder = buckets.place(at(bucket, "x"))
    folder.mkdir(parents=True)
    for text in ("one", "two"):
        files.commit_bytes(folder / "a", text.encode())
    with files.partial_folder(folder / "b") as partial:
        (partial / "c").write_text("three")
    assert bucket.objects() == ["x/a", "x/b/c"]
    on_host(monkeypatch, tmp_path, "second")
    folder = buckets.place(at(bucket, "x"))
    assert not folder.exists() and buckets.names(folder) == {"a", "b/c"}
    buckets.fetch(folder, leave_out=lambda name: name == "b/c")
    assert (folder / "a").read_text() == "two" and not (folder / "b").exists()
    buckets.fetch(folder)
    assert (folder / "b/c").read_text() == "three"
    bucket.write("x/a", b"new")
    bucket.delete("x/b/c")
    buckets.fetch(folder)
    assert (folder / "a").read_text() == "new" and not (folder / "b/c").exists()
    buckets.remove(folder)
    assert not bucket.objects() and not folder.exists()


def test_a_cut_upload_leaves_no_file_and_no_part_of_a_folder(bucket, monkeypatch):
    folder = buckets.place(at(bucket, "x"))
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
    assert "x/b/1" in bucket.objects() and not buckets.names(folder) and not buckets.names(folder / "b")
    monkeypatch.setattr(buckets, "put", put)
    with files.partial_folder(folder / "b") as partial:
        (partial / "4").write_text("4")
    assert bucket.objects() == ["x/b/4"]
    (folder / "b/4").unlink()
    (folder / "b").rmdir()  # another host knows nothing of it
    with pytest.raises(SailError, match=at(bucket, "x/b is not empty")), files.partial_folder(folder / "b"):
        pass
    assert bucket.objects() == ["x/b/4"]


def test_the_mirror_keeps_what_it_has_added_until_the_bucket_has_something_new(bucket):
    path = buckets.place(at(bucket, "log"))
    path.parent.mkdir(parents=True)
    files.commit_bytes(path, b"1\n")
    with path.open("a") as file:
        file.write("2\n")
    buckets.fetch(path)
    assert path.read_text() == "1\n2\n"
    buckets.put_changed(path)
    assert bucket.read("log") == b"1\n2\n"
    bucket.write("log", b"3\n")
    buckets.fetch(path)
    assert path.read_text() == "3\n"


@pytest.mark.parametrize(
    ("wrong", "said", "kind"),
    [
        ("no_bucket", "there is no bucket nobody-made-it. Make it", SailError),
        ("no_credentials", "there are no valid credentials for it; set {bucket.credentials}", SailError),
        ("no_permission", "). Give these credentials the right to list, read, write and delete in", SailError),
        ("no_server", "Check the network, {bucket.endpoint} if it is set", DiskError),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said_in_one_line(bucket, wrong, said, kind, monkeypatch, capsys):
    address = f"{bucket.scheme}://nobody-made-it/x" if wrong == "no_bucket" else at(bucket, "x")
    with monkeypatch.context() as patch:
        getattr(bucket, wrong, lambda _: None)(patch)
        buckets._file_system.cache_clear()
        assert main(["evaluate", "--workdir", address]) == kind.status
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address}") and said.format(bucket=bucket) in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_client_of_buckets_prints_nothing_besides(bucket, monkeypatch):
    command = [sys.executable, "-m", "sail_jax", "evaluate", "--workdir", at(bucket, "x")]
    with monkeypatch.context() as patch:
        bucket.no_credentials(patch)
        found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_a_missing_package_is_said_in_one_line(bucket, monkeypatch):
    package, extra = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}[bucket.scheme]
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SailError, match=rf"needs the package {package}: pip install 'sail_jax\[{extra}\]'"):
        RunDirectory(at(bucket, "x"))


def test_every_content_comes_back_as_it_was(bucket, monkeypatch, tmp_path):
    large = np.random.default_rng(0).bytes(6 * 2**20)  # in requests of its own
    contents = (b"", b"\r", b"x\r\n", b"x\r", b"--==0==", b"x\n--==0==--\n", large, large[:999] + b"\r")
    folder = buckets.place(at(bucket, "x"))
    folder.mkdir(parents=True)
    for number, content in enumerate(contents):
        files.commit_bytes(folder / str(number), content)
    on_host(monkeypatch, tmp_path, "second")
    folder = buckets.place(at(bucket, "x"))
    buckets.fetch(folder)
    for number, content in enumerate(contents):
        assert bucket.read(f"x/{number}") == content == (folder / str(number)).read_bytes()


def test_what_another_process_has_removed_is_gone(bucket, monkeypatch):
    folder = buckets.place(at(bucket, "x"))
    client = buckets._files(folder)
    find = client.find

    def find_then_lose(*args, **options):
        found = find(*args, **options)
        bucket.delete("x/a")
        return found

    bucket.write("x/a", b"one")
    monkeypatch.setattr(client, "find", find_then_lose)
    buckets.remove(folder)
    assert not bucket.objects()
    bucket.write("x/a", b"one")
    with pytest.raises(DiskError, match=r"bucket/x/a cannot be read or written \(no such object\)"):
        buckets.fetch(folder)


def test_objects_of_google_are_removed_in_batches_and_its_bad_requests_are_said(bucket, monkeypatch):
    if bucket.scheme != "gs":
        pytest.skip("asks what only gcsfs does")
    client = type(buckets._files(buckets.place("gs://bucket/x")))
    monkeypatch.setattr(client, "on_google", True)  # of other servers it removes one object at a time
    for number in range(3):
        bucket.write(f"x/{number}", b"1")
    buckets.remove(buckets.place("gs://bucket/x"))
    assert not bucket.objects()
    with monkeypatch.context() as patch:
        bucket.answer(patch, 400, "The name is invalid.")
        with pytest.raises(DiskError, match=r"gs://bucket/x cannot be read or written \(Bad Request"):
            buckets.names(buckets.place("gs://bucket/x"))


def test_items_tables_and_embeddings_are_read_where_they_were_not_written(bucket, monkeypatch, tmp_path, capsys):
    writer = ItemStoreWriter(buckets.place(at(bucket, "items")))
    ids = [f"item{i}" for i in range(6)]
    for shard in range(3):
        writer.write_shard(shard, [Item(name, text={"title": name * 9}) for name in ids[2 * shard :][:2]])
    writer.finalize(3)
    write_pairs(buckets.place(at(bucket, "tables/copair.parquet")), [(Pair("item1", None, "item2"), "train")])
    z = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    folder = buckets.place(at(bucket, "vectors"))
    folder.mkdir(parents=True)
    write_part(part_path(folder, 0), ids, z, "float32")
    write_info(folder, EmbeddingInfo("model", "f", 8, "float32", "VTA", (), ""))
    assert "tables/copair.parquet" in bucket.objects() and not [key for key in bucket.objects() if "spool" in key]
    on_host(monkeypatch, tmp_path, "second")
    data = buckets.place(f"{bucket.scheme}://bucket")
    config = config_lib.build({"data": {"datasets": {"copair": {"table": "tables/copair.parquet"}}}})
    options = argparse.Namespace(program="sail-jax", config=Path("mine.py"), source=Path("logs"), overrides=[])
    print_after_tables(options, config, "ingest", data)
    assert "sail-jax train " in capsys.readouterr().out  # the table is there, though it was not fetched
    store = ItemStore.open(at(bucket, "items"))
    assert not list(store.path.glob("*.array_record"))  # they come when they are read
    assert list(store.item_ids()) == ids and store.get("item3").text == {"title": "item3" * 9}
    assert [path.name for path in store.path.glob("*.array_record")] == ["items-00001.array_record"]
    assert PairTable.open(buckets.place(at(bucket, "tables/copair.parquet")))[0].target_id == "item2"
    found, vectors = EmbeddingSet(at(bucket, "vectors")).load()
    assert found == ids
    np.testing.assert_allclose(vectors, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-5)


def test_vectors_are_joined_to_items_in_a_bucket(bucket, monkeypatch, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},title {n}\n" for n in range(4)))
    pq.write_table(pa.table({"item_id": ["i2", "i0"], "vector": [[2.0], [0.5]]}), tmp_path / "late.parquet")
    config = config_lib.build({"ingest": {"source": {"path": "items.csv", "text": {"title": "title"}}}})
    ingest(config, tmp_path, at(bucket, "data"))
    on_host(monkeypatch, tmp_path, "second")
    join_vectors(at(bucket, "data"), "late", tmp_path / "late.parquet", max_bad_records=0)
    on_host(monkeypatch, tmp_path, "third")
    store = ItemStore.open(at(bucket, "data/items"))
    found = {item.item_id: item.id_embeddings["late"].tolist() for item in store if item.id_embeddings}
    assert found == {"i0": [0.5], "i2": [2.0]} and not [key for key in bucket.objects() if "partial" in key]


def test_shards_that_were_read_long_ago_make_room(bucket, monkeypatch, tmp_path):
    writer = ItemStoreWriter(buckets.place(at(bucket, "items")))
    for shard in range(3):
        writer.write_shard(shard, [Item(f"item{shard}", text={"title": "x" * 100_000})])
    writer.finalize(3)
    on_host(monkeypatch, tmp_path, "second")
    size = len(bucket.read("items/items-00000.array_record"))
    monkeypatch.setenv("SAIL_JAX_BUCKETS_GB", str(2.5 * size / 1e9))
    store = ItemStore.open(at(bucket, "items"))
    for name in ("item0", "item1", "item2", "item0"):  # a reader keeps what it has open
        assert store.get(name).item_id == name
    assert len(list(store.path.glob("*.array_record"))) == 2
    assert [item.item_id for item in ItemStore.open(at(bucket, "items"))] == ["item0", "item1", "item2"]


@pytest.mark.slow
def test_one_process_at_a_time_owns_a_run_in_a_bucket(bucket, monkeypatch, tmp_path):
    # Times of a bucket are whole seconds, and a loaded machine beats late: the lease is many beats.
    monkeypatch.setattr(ownership, "_LEASE", 20.0)
    monkeypatch.setattr(ownership, "_BEAT", 0.3)
    with ownership._owning(RunDirectory(at(bucket, "run"))):
        on_host(monkeypatch, tmp_path, "second")
        with pytest.raises(OwnedError), ownership._owning(RunDirectory(at(bucket, "run"))):
            pass
        on_host(monkeypatch, tmp_path, "first")
        monkeypatch.setattr(ownership, "_kernel", lambda: "another host")
        with pytest.raises(OwnedError), ownership._owning(RunDirectory(at(bucket, "run"))):
            pass
    assert not bucket.objects()
    dead = {"host": "gone", "kernel": "", "pid": 1, "started": "1", "since": "long ago", "owns": True}
    bucket.write("run/owners/dead.json", json.dumps(dead).encode())
    monkeypatch.setattr(ownership, "_LEASE", 2.0)
    with ownership._owning(RunDirectory(at(bucket, "run"))):
        assert "run/owners/dead.json" not in bucket.objects()


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
    run = buckets.place(at(bucket, "run"))
    monkeypatch.setattr(uploads, "everyone", lambda: _OfTwo(False))
    config = config_lib.build(tiny.experiment(at(bucket, "data")))
    with pytest.raises(SailError, match=at(bucket, "run: several hosts save .* Set SAIL_JAX_BUCKETS to a folder")):
        train(config, run)
    assert not bucket.objects() and not [path for path in run.rglob("*") if path.is_file()]
    monkeypatch.setattr(uploads, "everyone", lambda: _OfTwo(True))
    uploads.require_one_mirror(RunDirectory(run))


def test_a_run_names_its_data_by_their_address(bucket, monkeypatch, tmp_path):
    def saved(run, data):
        found = RunDirectory(run)
        found.save_config(config_lib.build({"data": {"dir": str(data)}}))
        on_host(monkeypatch, tmp_path, run.rpartition("/")[2])
        again = RunDirectory(run)
        return json.loads(again.config.read_text())["data"]["dir"], again.load_config().data.dir

    assert saved(at(bucket, "one"), at(bucket, "data")) == (at(bucket, "data"), at(bucket, "data"))
    assert saved(f"{tmp_path}/two", at(bucket, "data")) == (at(bucket, "data"), at(bucket, "data"))
    assert saved(at(bucket, "three"), tmp_path) == (str(tmp_path), str(tmp_path))
    table = {"table": at(bucket, "tables/x.parquet")}
    config = config_lib.build({"data": {"dir": "data", "datasets": {"x": table}}})
    assert buckets.place("data") / buckets.place(config.data.datasets["x"].table) == buckets.place(table["table"])
    within = saved(at(bucket, "four"), at(bucket, "four/data"))
    assert within == ("data", str(buckets.place(at(bucket, "four/data"))))


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_host_and_ends_the_same(bucket, monkeypatch, tmp_path, capsys):
    settings = tiny.experiment(at(bucket, "data"))
    del settings.data.datasets["search"]  # another program to compile
    config = config_lib.build(settings)
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", at(bucket, "data"))
    config_lib.save(config, tmp_path / "config.json")

    def train(workdir, name):
        return start(tmp_path / "config.json", workdir, tmp_path / f"{name}.npz")

    on_host(monkeypatch, tmp_path, "second")
    finish(train(tmp_path / "run", "whole"))

    def saved():
        found = [key for key in bucket.objects() if key.startswith("run/checkpoints/")]
        return found and not any(key.endswith(".partial") for key in found)

    kill_when(train(at(bucket, "run"), "killed"), saved)
    assert "run/checkpoints/6/commit_success.txt" not in bucket.objects()
    on_host(monkeypatch, tmp_path, "third")
    finish(train(at(bucket, "run"), "resumed"))
    whole, resumed = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "resumed"))
    for leaf in whole.files:
        np.testing.assert_array_equal(whole[leaf], resumed[leaf])
    assert [line["step"] for line in read_training_log(RunDirectory(at(bucket, "run")))] == [1, 2, 4, 6]


@pytest.mark.slow
def test_members_of_a_sweep_read_data_in_a_bucket(bucket, monkeypatch, tmp_path):
    config = config_lib.build(tiny.experiment(at(bucket, "data")))
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", at(bucket, "data"))
    config_lib.save(config, tmp_path / "base.json")
    ingest(config, tmp_path / "raw", tmp_path / "data")
    sweep = Sweep(str(tmp_path / "base.json"), [grid("optimizer.peak", [1e-3, 2e-3])], name="s")
    on_host(monkeypatch, tmp_path, "second")
    checked = check_members(sweep, expand(sweep))
    assert {member.config.data.dir for member in checked} == {at(bucket, "data")}
    folder = SweepFolder(tmp_path / "sweep")
    assert len(write_sweep(folder, sweep, checked)) == 2
    on_host(monkeypatch, tmp_path, "third")
    assert write_sweep(folder, sweep, check_members(sweep, expand(sweep))) == []
    assert config_lib.load(folder.config("peak=0.001,seed=0")).data.dir == at(bucket, "data")
    there = dataclasses.replace(sweep, overrides=[f"data.dir={tmp_path / 'data'}"])
    assert {m.record.data for m in check_members(there, expand(there))} == {m.record.data for m in checked}


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_in_a_bucket_serves_hosts_that_have_nothing_of_it(bucket, monkeypatch, tmp_path, capsys):
    config = config_lib.build(tiny.experiment(at(bucket, "data")))
    make_world(config.synthetic, config.seed, tmp_path / "raw")
    ingest(config, tmp_path / "raw", at(bucket, "data"))
    buckets.place(f"{bucket.scheme}://bucket").mkdir(exist_ok=True)
    save_untrained(buckets.place(at(bucket, "run")), config)
    on_host(monkeypatch, tmp_path, "second")
    assert main(["embed", "--workdir", at(bucket, "run"), "--output", at(bucket, "vectors")]) == 0
    assert f"Written to {at(bucket, 'vectors')}" in capsys.readouterr().out
    on_host(monkeypatch, tmp_path, "third")
    assert main(["search", "--workdir", at(bucket, "run"), "--embeddings", at(bucket, "vectors"), "--text", "red"]) == 0
    assert f"--embeddings {at(bucket, 'vectors')}" in capsys.readouterr().out
    on_host(monkeypatch, tmp_path, "fourth")
    assert main(["export", "--workdir", at(bucket, "run"), "--output", at(bucket, "export")]) == 0
    assert {"export/model.safetensors", "export/modules.json"} <= set(bucket.objects())
    # The newest copy of a checkpoint counts, and a damaged one is not read.
    damaged = next(key for key in bucket.objects() if key.startswith("run/checkpoints/1/model/ocdbt.process_0/d/"))
    bucket.write(damaged, b"damaged")
    assert main(["evaluate", "--workdir", at(bucket, "run")]) == 2
    assert at(bucket, "run/checkpoints has no checkpoint that is whole (1: model/") in capsys.readouterr().err
