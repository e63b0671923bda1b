"""The reader of logs: canonical columns from several formats and types, and what it says of mistakes."""

import dataclasses
import datetime

import numpy as np
import polars as pl
import pytest
from small_logs import config, events, with_logs, write

from sail_jax.errors import SailError
from sail_jax.logs.reader import (
    check_rows,
    check_times,
    count_rows,
    cut_time,
    passed_over_beside,
    scan_events,
    scan_hashtags,
    scan_items,
    scan_live,
    scan_results,
    separators_said,
)
from sail_jax.logs.vector_files import read_vectors, scan_vector_ids


def test_canonical_columns_of_events(tmp_path):
    write(tmp_path / "logs/events", events([("u1", "a", 5, 0), ("u2", "b", 6, 3)]))
    frame = scan_events(config(), tmp_path).collect(engine="streaming")
    assert frame.schema == {
        "user": pl.String,
        "item": pl.String,
        "time": pl.Int64,
        "positives": pl.UInt8,
        "watch_share": pl.Float32,
    }
    assert frame.rows() == [("u1", "a", 5, 0, 0.5), ("u2", "b", 6, 3, 0.5)]


def test_parts_may_differ_in_types_and_rows_without_ids_go(tmp_path):
    """Ids as numbers, times as timestamps, flags as 0 and 1 or words; each part alone is consistent."""
    flags = events([("", "", 0, 0)])
    base = {name: flags[name] * 2 for name in ("share", "comment", "follow")}
    first = {"user_id": [1, None], "item_id": [7, 8], "timestamp": [100, 101], "like": [1, 0], "finish": [None, 1]}
    when = [datetime.datetime(1970, 1, 1, 0, 2), None]
    second = {
        "user_id": ["1", "2"],
        "item_id": ["7", "8"],
        "timestamp": when,
        "like": ["True", "no"],
        "finish": ["1", ""],
    }
    (tmp_path / "logs/events").mkdir(parents=True)
    for number, part in enumerate((first, second)):
        pl.DataFrame(part | base | {"watch_share": [None, 1.0]}).write_parquet(
            tmp_path / f"logs/events/{number}.parquet"
        )
    frame = scan_events(config(), tmp_path).collect(engine="streaming")
    assert frame.select("user", "item", "time", "positives").rows() == [("1", "7", 100, 1), ("1", "7", 120, 2)]
    assert count_rows(config(), tmp_path, "events") == 4


@pytest.mark.parametrize("suffix, separator", [("csv", ","), ("tsv", "\t")])
def test_text_formats_keep_ids_as_they_are(tmp_path, suffix, separator):
    lines = [
        "user_id,item_id,timestamp",
        "007,0042,12",
        "8,1e3,1970-01-02",
        "9,x,1970-01-01 00:01:00",
        "9,y,1970-01-01T00:01:01",
    ]
    (tmp_path / f"ratings.{suffix}").write_text("\n".join(lines).replace(",", separator))
    base = config()
    log = dataclasses.replace(base.logs.events, path=f"ratings.{suffix}", flags=(), watch_share="")
    frame = scan_events(with_logs(base, events=log), tmp_path).collect(engine="streaming")
    assert frame.rows() == [
        ("007", "0042", 12, 1, None),
        ("8", "1e3", 86_400, 1, None),
        ("9", "x", 60, 1, None),
        ("9", "y", 61, 1, None),
    ]


def test_items_with_lists_and_with_separators(tmp_path):
    write(
        tmp_path / "logs/items",
        {"item_id": ["a", "b"], "timestamp": [1, None], "labels": [["x", "y"], None], "summary": ["s", None]},
    )
    assert scan_items(config(), tmp_path).collect().rows() == [("a", 1, ["x", "y"], "s"), ("b", None, [], None)]
    (tmp_path / "items.csv").write_text("item_id,labels\na,x|y\nb,\n")
    base = config()
    log = dataclasses.replace(base.logs.catalogue, path="items.csv", time="", summary="")
    frame = scan_items(with_logs(base, catalogue=log), tmp_path).collect()
    assert frame.rows() == [("a", None, ["x", "y"], None), ("b", None, [], None)]


def test_results_of_searches_are_clicked_or_not(tmp_path):
    log = {
        "user_id": ["u"] * 2,
        "query": ["q", "r"],
        "item_id": ["a", "b"],
        "timestamp": [1, 2],
        "clicked": [True, False],
    }
    write(tmp_path / "logs/searches", log)
    shown = [("u", "q", "a", 1, True), ("u", "r", "b", 2, False)]
    assert sorted(scan_results(config(), tmp_path).collect().rows()) == shown
    base = config()
    all_clicks = with_logs(base, searches=dataclasses.replace(base.logs.searches, clicked=""))
    assert scan_results(all_clicks, tmp_path).collect()["clicked"].to_list() == [True, True]


def test_ratings_are_positives_by_a_condition_and_times_have_a_unit(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,5999\n1,11,3.5,7000\n")
    base = config()
    log = dataclasses.replace(
        base.logs.events, path="ratings.csv", user="userId", item="movieId", flags=("rating>=4",), watch_share=""
    )
    frame = scan_events(with_logs(base, events=log, time_unit="ms"), tmp_path).collect()
    assert frame.select("item", "time", "positives").rows() == [("10", 5, 1), ("11", 7, 0)]
    with pytest.raises(SailError, match="no column 'ratings'.*Did you mean 'rating'.*config.logs.events.flags"):
        scan_events(with_logs(base, events=dataclasses.replace(log, flags=("ratings>=4",))), tmp_path)


def test_live_and_hashtags(tmp_path):
    write(tmp_path / "logs/live", {"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "seconds": [3]})
    write(tmp_path / "logs/hashtags", {"item_id": ["a"], "hashtag": ["#x"], "timestamp": [1]})
    assert scan_live(config(), tmp_path).collect().rows() == [("u", "a", 1, 3.0)]
    assert scan_hashtags(config(), tmp_path).collect().rows() == [("a", "#x", 1)]


@pytest.mark.parametrize("share, cut", [(0.1, 190), (0.5, 150), (0.0, 200)])
def test_cut(tmp_path, share, cut):
    write(tmp_path / "logs/events", events([("u", "a", 100, 1), ("u", "b", 200, 0)]))
    assert cut_time(with_logs(config(), test_share=share), tmp_path) == cut


def without_other_logs(base, **events):
    """The settings of a log of events alone, split by a column."""
    gone = {
        name: dataclasses.replace(getattr(base.logs, name), path="")
        for name in ("searches", "live", "hashtags", "catalogue")
    }
    return with_logs(base, **gone, events=dataclasses.replace(base.logs.events, flags=(), watch_share="", **events))


def test_a_log_without_times_is_ordered_and_split_by_columns(tmp_path):
    (tmp_path / "plays.csv").write_text(
        "user_id,item_id,listens,side\nu,a,3,train\nu,b,50,train\nv,c,9,test\nv,d,99,test\nw,e,1,valid\n"
    )
    settings = without_other_logs(config(), path="plays.csv", time="-listens", split="side")
    frame = scan_events(settings, tmp_path).sort("time").collect()
    assert frame["item"].to_list() == ["b", "a", "d", "c"]  # the most listens first, the test side last
    cut = cut_time(settings, tmp_path)
    assert (frame["time"] > cut).to_list() == [False, False, True, True]
    assert frame["time"].diff().to_list()[1::2] == [47, 90]
    ascending = scan_events(without_other_logs(config(), path="plays.csv", time="listens"), tmp_path)
    assert ascending.sort("time").collect()["item"].to_list() == ["e", "a", "c", "b", "d"]
    for changes, message in (
        ({"time": "-plays", "split": "side"}, "plays.*config.logs.events.time"),
        ({"time": "-listens", "split": "sides"}, "sides.*config.logs.events.split"),
    ):
        with pytest.raises(SailError, match=message):
            scan_events(without_other_logs(config(), path="plays.csv", **changes), tmp_path)
    with_search = dataclasses.replace(settings.logs.searches, path="logs/searches")
    with pytest.raises(SailError, match="events.split.*config.logs.searches.path"):
        scan_events(with_logs(settings, searches=with_search), tmp_path)


def test_what_lies_beside_logs_and_vectors_is_counted(tmp_path):
    write(tmp_path / "logs/events", events([("u", "a", 0, 1)]))
    write(tmp_path / "vectors", {"id": ["a"], "vector": [[1.0]]})
    for name in ("logs/events/day=1/0.parquet", "logs/events/1.json", "vectors/1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    absent = {
        name: dataclasses.replace(getattr(config().logs, name), path="")
        for name in ("searches", "live", "hashtags", "catalogue")
    }
    settings = with_logs(config(), id_embeddings={"id": "vectors"}, dense_features="", **absent)
    said = passed_over_beside(settings, tmp_path)
    assert [line.partition(": ")[0] for line in said] == [str(tmp_path / "logs/events"), str(tmp_path / "vectors")]
    assert "2 files passed over" in said[0] and "folder 1" in said[0] and ".json 1" in said[0] and ".jsonl 1" in said[1]


def test_vectors_in_parts(tmp_path):
    write(tmp_path / "dense", {"item_id": [1, 2, 3], "vector": [[1.0, 2.0], None, [3.0, 4.0]]}, parts=2)
    batches = list(read_vectors(tmp_path / "dense"))
    assert [name for ids, _ in batches for name in ids] == ["1", "3"]
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in batches]), [[1, 2], [3, 4]])
    assert all(vectors.dtype == np.float32 for _, vectors in batches)


def test_vectors_under_other_names(tmp_path):
    write(tmp_path / "dense", {"emb": [[1.0, 2.0]], "iid": [7]})
    assert [ids for ids, _ in read_vectors(tmp_path / "dense")] == [["7"]]
    assert scan_vector_ids(tmp_path / "dense").collect()["item"].to_list() == ["7"]


def test_vectors_of_several_widths(tmp_path):
    write(tmp_path / "dense", {"item_id": ["a", "b"], "vector": [[1.0, 2.0], [3.0]]})
    with pytest.raises(SailError, match="differ in width"):
        list(read_vectors(tmp_path / "dense"))


def test_mistakes_name_file_setting_and_nearest(tmp_path):
    rows = events([("u", "a", 1, 1)])
    rows["likes"] = rows.pop("like")
    write(tmp_path / "logs/event", rows)
    with pytest.raises(SailError, match=r"no .*logs/events\. Did you mean event\? Change config.logs.events.path"):
        scan_events(config(), tmp_path)
    (tmp_path / "logs/event").rename(tmp_path / "logs/events")
    with pytest.raises(SailError, match=r"no column 'like'.*Did you mean 'likes'\? Change config.logs.events.flags"):
        scan_events(config(), tmp_path)
    base = config()
    with pytest.raises(SailError, match="config.logs.live.path is empty"):
        scan_live(with_logs(base, live=dataclasses.replace(base.logs.live, path="")), tmp_path)
    (tmp_path / "logs/live").mkdir()
    with pytest.raises(SailError, match="holds no .csv, .tsv, .jsonl, .parquet"):
        scan_live(base, tmp_path)
    (tmp_path / "logs/live/0.parquet").write_bytes(b"no parquet")
    with pytest.raises(SailError, match="0.parquet cannot be read"):
        scan_live(base, tmp_path)
    (tmp_path / "logs/live/1.csv").write_text("a\n")
    with pytest.raises(SailError, match=".csv and .parquet; write it as one of"):
        scan_live(base, tmp_path)


def test_a_column_of_the_wrong_type(tmp_path):
    write(tmp_path / "logs/live", {"user_id": ["u"], "item_id": ["a"], "timestamp": [[1]], "seconds": [3]})
    with pytest.raises(SailError, match="'timestamp' is List.*config.logs.live.time"):
        scan_live(config(), tmp_path)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(["x"], pl.List(pl.String)), ([b"a"], pl.Binary), ([{"a": "x"}], pl.Struct({"a": pl.String}))],
)
def test_ids_that_are_no_texts_are_refused(tmp_path, values, dtype):
    frame = pl.DataFrame({"user_id": ["u"], "timestamp": [1], "seconds": [3]})
    values = [values] if dtype == pl.List else values
    write(tmp_path / "logs/live", frame.with_columns(item_id=pl.Series(values, dtype=dtype)))
    with pytest.raises(
        SailError, match="'item_id' is (List|Binary|Struct).*; write texts or numbers, or change config"
    ):
        scan_live(config(), tmp_path)


@pytest.mark.parametrize("dtype", [pl.Date, pl.Datetime("us"), pl.Datetime("ms", "UTC")])
def test_dates_that_the_engine_cannot_write_are_beyond_the_year_9999(tmp_path, dtype):
    last = pl.Series([2**31 - 1], dtype=pl.Int32) if dtype == pl.Date else pl.Series([2**62], dtype=pl.Int64)
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "seconds": [3]})
    write(tmp_path / "logs/live", frame.with_columns(timestamp=last.cast(dtype)))
    with pytest.raises(SailError, match="'timestamp' reaches beyond the year 9999 with"):
        check_times(config(), tmp_path, ("live",))


def test_rows_of_a_damaged_csv_name_the_folder(tmp_path):
    settings = of_texts(tmp_path, ["1", "2"])
    with (tmp_path / "events.csv").open("a") as file:
        file.write('\nu,x,"3\n')
    with pytest.raises(SailError, match="has rows that cannot be read"):
        check_times(settings, tmp_path, ("events",))
    with pytest.raises(SailError, match="has rows that cannot be read"):
        cut_time(settings, tmp_path)


def of_texts(tmp_path, times, **settings):
    """The config of an event log in CSV whose times are these texts, written in tmp_path."""
    rows = [f"u{i},x{i},{time}" for i, time in enumerate(times)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    base = config()
    log = dataclasses.replace(base.logs.events, path="events.csv", flags=(), watch_share="", **settings)
    empty = {name: dataclasses.replace(getattr(base.logs, name), path="") for name in ("searches", "live", "hashtags")}
    empty["catalogue"] = dataclasses.replace(base.logs.catalogue, path="")
    return with_logs(base, events=log, **empty)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01T02:01:00+02:00", 60),
        ("1970-01-01 00:01:00.5-0030", 1860),
        ("1970-01-01 00:01:00 UTC", 60),
        ("1970-01-01T00:01", 60),
        ("1970/01/02", 86_400),
        (" 60 ", 60),
        ("60.9", 60),
    ],
)
def test_dates_with_and_without_an_offset(tmp_path, text, seconds):
    settings = of_texts(tmp_path, [text])
    check_times(settings, tmp_path, ("events", "live"))
    assert scan_events(settings, tmp_path).collect(engine="streaming")["time"].to_list() == [seconds]


def test_times_that_are_none_are_an_error_with_the_first_of_them(tmp_path):
    settings = of_texts(tmp_path, ["2024-01-31", "01/31/2024", "02/01/2024", ""])
    with pytest.raises(
        SailError, match=r"events\.csv: column 'timestamp' has 2 values of 4 .* the first is '01/31/2024'"
    ):
        check_times(settings, tmp_path, ("events", "live"))
    check_times(of_texts(tmp_path, ["5"] * 200 + ["unknown"]), tmp_path, ("events", "live"))  # is dropped, and counted


@pytest.mark.parametrize(("last", "unit"), [("1700000000123", "ms"), ("1700000000123456", "us")])
def test_times_in_another_unit_are_an_error_with_that_unit(tmp_path, last, unit):
    settings = of_texts(tmp_path, ["5", last])
    with pytest.raises(SailError, match=rf"beyond the year 9999 with '{last}'\. Set config\.logs\.time_unit='{unit}'"):
        check_times(settings, tmp_path, ("events", "live"))
    settings = dataclasses.replace(settings, logs=dataclasses.replace(settings.logs, time_unit=unit))
    check_times(settings, tmp_path, ("events", "live"))


def test_what_only_orders_may_be_any_number(tmp_path):
    check_times(of_texts(tmp_path, ["5", "1700000000123456"], time="-timestamp"), tmp_path, ("events", "live"))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_and_ids_of_a_csv(tmp_path, separator):
    lines = ["user_id,item_id,timestamp", "u  ,7 ,5"]
    (tmp_path / "EVENTS.CSV").write_text("\n".join(lines).replace(",", separator))
    settings = of_texts(tmp_path, [])
    log = dataclasses.replace(settings.logs.events, path="EVENTS.CSV")
    frame = scan_events(with_logs(settings, events=log), tmp_path).collect(engine="streaming")
    assert frame.select("user", "item", "time").rows() == [("u", "7", 5)]


def test_ids_that_are_floats_are_those_of_whole_numbers(tmp_path):
    frame = events([("u", "a", 5, 0), ("v", "b", 6, 0)]) | {"item_id": [7.0, 7.5]}
    write(tmp_path / "logs/events", frame)
    assert scan_events(config(), tmp_path).collect(engine="streaming")["item"].to_list() == ["7", "7.5"]


@pytest.mark.parametrize("row", ["u2,x,2,9", "u2,x,2,,", "u2,x"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_with_other_cells_than_the_header_names_file_and_row(tmp_path, row, separator):
    settings = of_texts(tmp_path, ["1"])
    text = f"user_id,item_id,timestamp\nu1,x,1\n\n{row}\nu3,x,3\n".replace(",", separator)
    (tmp_path / "events.csv").write_text(text)
    problem = rf"events\.csv, record 'row 2': the row has {row.count(',') + 1} cells, the header has 3"
    with pytest.raises(SailError, match=problem):
        check_rows(settings, tmp_path, ("events", "live"))
    called = {",": "commas", ";": "semicolons", "\t": "tabs"}[separator]
    assert separators_said(settings, tmp_path) == [f"{tmp_path / 'events.csv'}: cells are separated by {called}."]
    (tmp_path / "events.csv").write_text(text.replace(row.replace(",", separator), "").replace("u3", '"u\n3"'))
    check_rows(settings, tmp_path, ("events",))


def test_a_row_with_an_open_quote_names_file_and_row(tmp_path):
    settings = of_texts(tmp_path, ["1"])
    (tmp_path / "events.csv").write_text('user_id,item_id,timestamp\nu,x,1\nu,"x,2\nu,y,3\n')
    with pytest.raises(SailError, match=r"events\.csv, record 'row 2': the row is no CSV"):
        check_rows(settings, tmp_path, ("events",))
    (tmp_path / "events.csv").write_text('user_id,"item_id,timestamp\nu,x,1\n')
    with pytest.raises(SailError, match=r"events\.csv: the row is no CSV"):
        check_rows(settings, tmp_path, ("events",))


def of_json(tmp_path, last):
    """The config of an event log in JSONL of 200 rows, and of one more line."""
    settings = of_texts(tmp_path, ["1"])
    rows = '{"user_id": 1, "item_id": "a", "timestamp": 1}\n' * 200
    (tmp_path / "events.jsonl").write_text(rows + last + "\n")
    return with_logs(settings, events=dataclasses.replace(settings.logs.events, path="events.jsonl", flags=("like",)))


def test_fields_that_late_lines_of_jsonl_have_first_are_read(tmp_path):
    settings = of_json(tmp_path, '{"user_id": "x", "item_id": 7, "timestamp": 2.5, "like": 1}')
    frame = scan_events(settings, tmp_path).collect(engine="streaming")
    assert frame.select("user", "item", "time", "positives").rows()[-2:] == [("1", "a", 1, 0), ("x", "7", 2, 1)]


@pytest.mark.parametrize("line", ['{"user_id": 1', "[1]"])
def test_a_line_that_is_no_object_names_file_and_row(tmp_path, line):
    with pytest.raises(SailError, match=r"events\.jsonl, record 'row 201': the line is not"):
        scan_events(of_json(tmp_path, line), tmp_path)
