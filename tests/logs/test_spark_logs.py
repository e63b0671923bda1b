"""Logs at addresses that Spark reads: the rows of the local reader, and what is said of mistakes."""

import contextlib
import dataclasses
import datetime
import io
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import small_logs
from small_logs import config, with_logs, write
from spark_here import alone, engine_config, needs_spark

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address, inside, read_here
from sail_jax.logs.canonical import SCHEMAS, write_canonical
from sail_jax.logs.engines import open_engine
from sail_jax.logs.log_source import LogSource
from sail_jax.logs.pairs.build import build_pairs
from sail_jax.logs.reader import LOGS, count_rows, cut_time

_USED = ("events", "searches", "hashtags", "catalogue")


def settings():
    base = config()
    flags = ("like", "rating>=4", "kind == 'a b'")
    return with_logs(base, events=dataclasses.replace(base.logs.events, flags=flags, watch_share=""))


def write_odd_logs(folder):
    """Logs whose parts differ in types, with ids in white space, texts in odd forms, and rows that lack something."""
    (folder / "logs/events").mkdir(parents=True)
    when = datetime.datetime(1970, 1, 1, 0, 2, 0, 999_999)
    parts = [
        {"user_id": [1, None, 3], "item_id": [7.0, 8.0, None], "timestamp": [100, 101, 102], "like": [1, 0, 1]},
        {"user_id": [" 1", "\u3000é\u2003"], "item_id": ["7 ", ""], "timestamp": [when, None], "like": ["True", "no"]},
        {"user_id": ["é", "x"], "item_id": ["7", "y"], "timestamp": ["1970-01-01T02:01:00+02:00", " -0.5 "]},
        {"user_id": ["ü"], "item_id": ["7"], "timestamp": [datetime.date(1970, 1, 2)], "like": [True]},
    ]
    for number, part in enumerate(parts):
        size = len(part["user_id"])
        part = {"like": [True] * size} | part | {"rating": ["4", "nan", "x"][:size], "kind": ["a b", None, "a"][:size]}
        pl.DataFrame(part).write_parquet(folder / f"logs/events/{number}.parquet")
    queries = ["Ｃａｔ\u00a0 VIDEO ", "  ", None, "ﬁne İ"]
    shown = {"user_id": list("abcd"), "query": queries, "item_id": list("wxyz"), "timestamp": [1, 2, 3, 4]}
    write(folder / "logs/searches", shown | {"clicked": [True, None, False, True]})
    write(folder / "logs/hashtags", {"item_id": ["a", "b"], "hashtag": [" ##Ｔag", "#"], "timestamp": [1, 2]})
    items = {"item_id": ["a", "b"], "timestamp": [5, None], "labels": [["x ", "", None], None]}
    write(folder / "logs/items", items | {"summary": ["Größe 東京タワー 5x", None]})
    (folder / "logs/items/_SUCCESS").touch()


def write_texts(folder):
    """Logs as CSV, TSV and JSONL, with line breaks, quotes and separators within cells."""
    files = {
        "events/0.csv": "user_id;item_id;timestamp;like;rating;kind\r\n"
        '1;" a ""x""; b\r\nc";3;1;4;a b\r\n2;;;;;\r\n"";b;4;no;3.5;\r\n007;c;1970-01-02;TRUE;;"a"\r\n',
        "events/1.csv": "user_id,item_id,timestamp,like,rating,kind\n"
        '1," a ""x"", b\nc",3,1,4,a b\n2,,,,,\n"",b,4,no,3.5,\n3,c,5,1,,x\n',
        "events/2.csv": "\ufeffkind,user_id,item_id,timestamp,like,rating\na b,ü,7,9,1,4\n",
        "events/3.csv": "user_id,item_id,timestamp,like,rating,kind\n",
        "searches/0.tsv": "user_id\tquery\titem_id\ttimestamp\tclicked\na\tＣａｔ, VIDEO\tw\t1\ttrue\nb\t\tx\t2\t\n",
        "hashtags/0.jsonl": '{"item_id": 7, "hashtag": " ##Ｔag", "timestamp": 1}\n\n{"item_id": 8, "timestamp": 2}\n',
        "hashtags/1.jsonl": '{"item_id": "x", "hashtag": "y", "timestamp": "1970-01-02"}\n',
        "items/0.jsonl": '{"item_id": "a", "timestamp": 5.5, "labels": ["x ", "", null], "summary": "5x"}\n'
        '{"item_id": "b"}\n',
    }
    for name, text in files.items():
        path = folder / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    (folder / "logs/items/_SUCCESS").touch()


def read_both(folder):
    """Rows of logs, counts and cut by Spark and by the local reader, and messages; for a process of its own."""
    (folder / "odd/engine").mkdir(parents=True)
    (folder / "texts/engine").mkdir(parents=True)
    write_odd_logs(folder / "odd")
    write_texts(folder / "texts")
    scratch, found = engine_config(f"file://{folder}/scratch"), []
    for name in ("odd", "texts"):
        with open_engine("spark", scratch, folder / name / "engine") as engine:
            found.append((_by_spark(engine, folder / name), _here(folder / name)))
            if name == "texts":
                mistakes = [_mistake(engine, folder / "mistakes", *mistake) for mistake in _MISTAKES]
    return found, mistakes, list((folder / "scratch").iterdir())


def _by_spark(engine, folder):
    read = LogSource(settings(), Address(f"file://{folder}"), engine)
    tables = read.open({name: SCHEMAS[name] for name in _USED}, None, folder, lambda _: None)
    return {
        "facts": read.facts(_USED),
        "passed over": read.passed_over(),
        "cut": read.cut(),
        "rows": [read.count_rows(name) for name in _USED],
        "tables": {name: _sorted(pa.concat_tables(engine.batches(table))) for name, table in tables.items()},
    }


def _here(folder):
    here = {"cut": cut_time(settings(), folder), "rows": [count_rows(settings(), folder, name) for name in _USED]}
    here["tables"] = {}
    for name in _USED:
        write_canonical(settings(), folder, name, SCHEMAS[name], folder / "here.parquet")
        here["tables"][name] = _sorted(pl.read_parquet(folder / "here.parquet").to_arrow())
    return here


def _sorted(table: pa.Table):
    return sorted(map(str, table.to_pylist()))


_LIVE = {"user_id": ["u"] * 3, "item_id": ["a"] * 3, "timestamp": [1, 2, 3], "seconds": [3] * 3}
_HEADER = "user_id,item_id,timestamp,seconds\n"
# Rows of the live log, and what is said of them.
_MISTAKES = [
    ({"items": ["a"] * 3}, ["item_id"], "0.parquet has no column 'item_id'", "Change config.logs.live.item."),
    ({"item_id": [["a"]] * 3}, [], "'item_id' is List(String); write texts or numbers", "config.logs.live.item."),
    ({"timestamp": ["x", "", "01/31/2024"]}, [], "2 values of 3 that are no times; the first is 'x'", "live.time."),
    ({"timestamp": [1, 1_700_000_000_123, 2]}, [], "year 9999 with '1700000000123'", "config.logs.time_unit='ms'."),
    ("no parquet", "0.parquet", "0.parquet cannot be read", "write it again."),
    (_HEADER + "1,a,3,1\n2,b\n", "0.csv", "0.csv: the row '2,b' cannot be read", "in double quotes."),
    (_HEADER + "1,a,3,4,5\n", "0.csv", "0.csv: the row '1,a,3,4,5' cannot", "in double quotes."),
    (_HEADER + '1,"a,3\n2,b,4,5\n', "0.csv", "0.csv: the row '1,\"a,3", "in double quotes."),
    ("user_id,item_id,item_id\n", "0.csv", "the column 'item_id' more than once", "a name of its own."),
    ("user_id,item\xff\n", "0.csv", "0.csv is not UTF-8", "Save it as UTF-8."),
    (
        '{"user_id": 1}\n{"user_id":\n',
        "0.jsonl",
        "0.jsonl: the row '{\"user_id\":' cannot",
        "JSON object per line.",
    ),
    ("5\n", "0.jsonl", "0.jsonl: the row '5'", "JSON object per line."),
    ("user_id,item_id\n", "0.csv 0.tsv", "is .csv and .tsv; write it as one of .csv", "if there is none."),
    ("x", "0.xml", "is none of what Spark reads there; write it as one of .csv", "if there is none."),
    ("", "", "or nothing in it", "Change config.logs.live.path, or set it to '' if there is none."),
]


def _mistake(engine, folder, changes, names, *_):
    """Returns the message on a log: of other columns and without some, or of some text in files of some names."""
    path = folder / str(len(list(folder.glob("*"))))
    (path / "logs/live").mkdir(parents=True)
    if isinstance(changes, dict):
        write(path / "logs/live", {key: of for key, of in (_LIVE | changes).items() if key not in names})
    for name in names.split() if isinstance(names, str) else ():
        (path / "logs/live" / name).write_text(changes, encoding="latin-1")
    try:
        LogSource(settings(), Address(f"file://{path}"), engine).check(("live",), ("live",))
    except SailError as error:
        return str(error)
    return ""


@needs_spark
def test_spark_reads_the_rows_of_the_local_reader_and_tells_mistakes(tmp_path):
    found, mistakes, left = alone(read_both, tmp_path)
    for name, (there, here) in zip(("odd", "texts"), found, strict=True):
        assert there.pop("passed over") == [f"file://{tmp_path}/{name}/logs/items: {_passed_over()}"]
        facts = there.pop("facts")
        if name == "odd":
            assert facts["events"] == {
                **{"rows": 8, "without_user": 1, "without_item": 1, "without_time": 1, "without_positives": 0},
                **{"kept": 5, "earliest": -1, "latest": 86_400},
            }
        assert there == here and there["rows"][0] >= 8
    assert not left
    for (*_, problem, remedy), said in zip(_MISTAKES, mistakes, strict=True):
        assert problem in said and said.endswith(remedy) and "file:" in said and "\n" not in said


def build_at_address(folder):
    """Builds two tables at an address, broken off in the second and gone on with; for a process of its own."""
    from sail_jax.logs.spark_output import SparkOutput  # noqa: PLC0415 PySpark is an extra

    small_logs.drawn_export(folder)
    spark, output = engine_config(), Address(f"file://{folder}/out")
    values = {"q2i_search": {"min_clicks": 1}, "cls": {"min_items": 10_000}}
    built = with_logs(small_logs.config(**values), engine=spark)
    write_pairs, begun = SparkOutput.write_pairs, []

    def stops(self, name, *rest):
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return write_pairs(self, name, *rest)

    SparkOutput.write_pairs = stops
    try:
        build_pairs(built, Address(f"file://{folder}"), output, tuple(values), engine="spark", strict=False)
    except KeyboardInterrupt:
        left = sorted(path.name for path in (folder / "out").glob("[!.]*"))
    build_pairs(built, Address(f"file://{folder}"), output, tuple(values), engine="spark", strict=False)
    config_lib.save(built, folder / "config.json")
    words = ["--config", str(folder / "config.json"), "--source", str(folder), "--output", str(output)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(["pairs", *words, "--engine", "spark", "--only", "q2i_search"])
    return begun, left, status, " ".join(said.getvalue().split())


@needs_spark
def test_tables_at_an_address_are_finished_one_by_one(tmp_path):
    begun, left, status, said = alone(build_at_address, tmp_path)
    assert begun == ["q2i_search", "cls", "cls", "q2i_search"] and left == ["q2i_search.parquet"]
    assert len(PairTable.open(tmp_path / "out/cls.parquet", "")) == 0
    summary = json.loads((tmp_path / "out/pairs.json").read_text())
    counts = summary["builders"]["q2i_search"]
    assert len(PairTable.open(tmp_path / "out/q2i_search.parquet", "train")) == counts["train"] > 10
    assert summary["builders"]["cls"]["rows"] == 0 < counts["rows"] == counts["train"] + counts["test"]
    assert "<h2>q2i_search <small>" in (tmp_path / "out/pairs.html").read_text()
    assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name or "finished" in path.name]
    assert (
        status == 0 and f"Tables: file://{tmp_path}/out; what was dropped, and why: file://{tmp_path}/out/pairs" in said
    )
    assert f"--config.data.datasets.q2i_search.table={tmp_path}/out/q2i_search.parquet" in said


def test_duckdb_writes_to_no_address(tmp_path, capsys):
    small_logs.drawn_export(tmp_path)
    with pytest.raises(SailError, match="hdfs://host/out is an address, to which duckdb does not write: use --engine"):
        build_pairs(small_logs.config(), tmp_path, Address("hdfs://host/out"), ("copair",))


def _passed_over():
    return '1 file passed over, of kinds that are not read: without suffix 1; such as "_SUCCESS"'


def test_where_paths_of_settings_lead(tmp_path, monkeypatch):
    monkeypatch.setenv("SAIL_JAX_BUCKETS", str(tmp_path / "mirror"))
    source = Address("s3a://bucket/export/")
    assert inside(source, "logs/events") == "s3a://bucket/export/logs/events"
    assert isinstance(inside(source, "logs/events"), Address)
    assert inside(source, "/data/events") == Path("/data/events")
    assert inside(tmp_path, "dbfs:/logs") == Address("dbfs:/logs")
    assert inside(tmp_path, "logs") == tmp_path / "logs"
    assert read_here(Address("file:///data/x")) == Path("/data/x")
    with pytest.raises(SailError, match="hdfs://host/x is read by the machine that runs the command.*copy it"):
        read_here(Address("hdfs://host/x"))


def test_duckdb_reads_no_address(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"logs": {"events": {"path": "hdfs://host/events"}}}')
    words = ["--config", str(tmp_path / "config.json"), "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["pairs", *words, "--only", "copair"]) != 0
    assert "config.logs.events.path leads to hdfs://host/events" in " ".join(capsys.readouterr().err.split())


def test_the_machines_of_spark_need_polars_and_pyarrow_alone(tmp_path):
    """What travels to them is read where this package cannot be imported."""
    cloudpickle = pytest.importorskip("pyspark.cloudpickle")
    from sail_jax.logs import spark_batches, spark_logs  # noqa: F401, PLC0415 the second one says how they travel

    steps = spark_batches.packed({"item": pl.col("x").cast(pl.String)}, ["item"], {}, [])
    convert = spark_batches.converter(steps, pa.schema([("item", pa.string())]))
    (tmp_path / "convert").write_bytes(cloudpickle.dumps(convert))
    program = (
        "import sys, pickle, pyarrow as pa\n"
        "sys.modules['sail_jax'] = None\n"
        "convert = pickle.load(open(sys.argv[1], 'rb'))\n"
        "batch = pa.RecordBatch.from_pydict({'x': [1, None]})\n"
        "print([of.to_pylist() for of in convert([batch])])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "convert"], capture_output=True, text=True)
    assert done.stdout == "[[{'item': '1'}]]\n", done.stderr
    assert set(_USED) < set(LOGS)
