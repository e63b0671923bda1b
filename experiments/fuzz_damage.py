"""Damages files, and makes up tables, cells and values that have been trouble somewhere."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from experiments.fuzz_originals import DIMS

LONG = "n" * 300  # longer than the name of a file may be
Rng = np.random.Generator


def damaged(rng: Rng, data: bytes) -> bytes:
    """Returns some bytes, damaged once or a few times: cut off, flipped, overwritten, swapped for something else."""
    for _ in range(rng.integers(1, 4)):
        data = _damaged_once(rng, data)
    return data


def _damaged_once(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    at = int(rng.integers(0, len(out) + 1))
    length = int(rng.integers(1, 65))
    match rng.integers(0, 9):
        case 0:
            return bytes(out[:at])
        case 1 | 2:
            for place in rng.integers(0, max(len(out), 1), min(len(out), int(rng.integers(1, 9)))):
                out[place] ^= 1 << int(rng.integers(0, 8))
        case 3:
            out[at : at + length] = rng.bytes(length)
        case 4:
            out[at : at + length] = bytes([int(rng.choice([0, 255, 127]))]) * length
        case 5:
            out[at:at] = rng.bytes(length)
        case 6:
            del out[at : at + length]
        case 7:
            out[at:at] = out[max(at - length, 0) : at]
        case _:
            whole = [
                b"",
                b"\0" * 100,
                rng.bytes(100),
                b"PAR1",
                b"{}",
                b"[]",
                b"null",
                b"\x89PNG\r\n\x1a\n",
                bytes(out[at:]),
            ]
            return whole[rng.integers(0, len(whole))] if rng.random() < 0.3 else bytes(out)
    return bytes(out)


# Cells that have been trouble somewhere.
CELLS = (
    *("", " ", '"', "'", ",", "\n", "\t", "\0", "\ud800", "é" * 500, LONG, f"{LONG}/{LONG}", "x/" * 3000, "../a.png"),
    *(
        "/etc/passwd",
        "a.png",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "1" * 400,
        "1.0",
        "007",
        "null",
        "None",
        "true",
    ),
    *("2024-01-31", "01/02/2024", "2024-01-31T12:00:00Z", "9999-12-31", "292277026596-12-04", "{}", "[]", "x|y|"),
)


def hostile_table(rng: Rng, table: pa.Table) -> pa.Table:
    """Returns a table in which a column or two are missing, or of types and values that tables seldom have."""
    for name in rng.choice(table.column_names, rng.integers(1, 3)):
        if name in table.column_names and rng.random() < 0.1:
            table = table.drop_columns([str(name)])
        elif name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, str(name), _hostile_column(rng, len(table)))
    return table.append_column("more", _hostile_column(rng, len(table))) if rng.random() < 0.1 else table


def _hostile_column(rng: Rng, rows: int) -> pa.Array:
    cells = [CELLS[place] for place in rng.integers(0, len(CELLS), rows)]
    texts = [cell.encode("utf-8", "replace").decode() for cell in cells]
    numbers = rng.choice([0, 1, -1, 2**31, 2**62, -(2**63)], rows).tolist()
    floats = rng.choice([0.0, 1.5, np.nan, np.inf, -np.inf, 1e300, 1_700_000_000.0], rows).tolist()
    with_null = [None if rng.random() < 0.3 else text for text in texts]
    columns: list[Callable[[], pa.Array]] = [
        lambda: pa.array(texts),
        lambda: pa.array(with_null),
        lambda: pa.array([f"i{row}" for row in range(rows)]),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array([rng.bytes(8) for _ in texts]),
        lambda: pa.array(numbers),
        lambda: pa.array(floats),
        lambda: pa.array(floats, pa.float32()),
        lambda: pa.array(floats).cast(pa.float16()),
        lambda: pa.array([True, None] * rows)[:rows],
        lambda: pa.nulls(rows),
        lambda: pa.array(numbers, pa.timestamp("us")),
        lambda: pa.array(numbers, pa.timestamp("ns", "UTC")),
        lambda: pa.array([int(number) % 2**31 for number in numbers], pa.date32()),
        lambda: pa.array(numbers, pa.duration("ms")),
        lambda: pa.array([1] * rows, pa.decimal128(30, 5)),
        lambda: pa.array([int(number) % 86_400 for number in numbers], pa.time32("s")),
        lambda: pa.array([[text] for text in texts]),
        lambda: pa.array([floats[: int(length)] for length in rng.integers(0, 5, rows)]),
        lambda: pa.array([floats[:4]] * rows, pa.list_(pa.float32(), 4)),
        lambda: pa.array([[0.5] * DIMS] * (rows - 1) + [None], pa.list_(pa.float32(), DIMS)),
        lambda: pa.array([[0.5] * (DIMS - 1) + [floats[0]]] * rows, pa.list_(pa.float32(), DIMS)),
        lambda: pa.array([{"bytes": b"x", "path": text} for text in texts]),
        lambda: pa.array([[("a", text)] for text in texts], pa.map_(pa.string(), pa.string())),
    ]
    with contextlib.suppress(pa.ArrowException):
        return columns[rng.integers(0, len(columns))]()
    return pa.array(texts)


def hostile_file(rng: Rng, original: Path, path: Path) -> None:
    """Writes a table to a path: the original damaged as bytes, or cell by cell, or another with its columns."""
    suffix, how = original.suffix, rng.integers(0, 3)
    if how == 0:
        path.write_bytes(damaged(rng, original.read_bytes()))
    elif suffix == ".parquet":
        pq.write_table(hostile_table(rng, pq.read_table(original)), path)
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in original.read_text().splitlines()]
        for row in rows:
            if rng.random() < 0.3 and row:
                row[str(rng.choice(list(row)))] = hostile_value(rng)
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        separator = "\t" if suffix == ".tsv" else ","
        lines = [line.split(separator) for line in original.read_text().splitlines()]
        for cells in lines[int(rng.integers(0, 2)) :]:
            if rng.random() < 0.3:
                cells[rng.integers(0, len(cells))] = CELLS[rng.integers(0, len(CELLS))]
        path.write_bytes("\n".join(map(separator.join, lines)).encode("utf-8", "surrogatepass"))


def hostile_value(rng: Rng) -> object:
    """Returns a JSON value that has been trouble somewhere."""
    values = (
        None,
        True,
        10**30,
        -1,
        1e308,
        float("nan"),
        float("inf"),
        [],
        {},
        [[1, 2], ["x"]],
        {"bytes": "x"},
        "\ud800",
    )
    return values[rng.integers(0, len(values))] if rng.random() < 0.5 else CELLS[rng.integers(0, len(CELLS))]


def copied(rng: Rng, original: Path, folder: Path) -> Path:
    """Copies a folder, and damages, removes, empties or duplicates one of its files; returns the copy."""
    copy = folder / "copy"
    shutil.copytree(original, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    file = files[rng.integers(0, len(files))]
    match rng.integers(0, 8):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(files[rng.integers(0, len(files))].read_bytes())
        case 2 if file.suffix == ".json":
            file.write_text(json.dumps(changed(rng, json.loads(file.read_text()))))
        case 3 if file.suffix == ".parquet":
            pq.write_table(hostile_table(rng, pq.read_table(file)), file)
        case _:
            file.write_bytes(damaged(rng, file.read_bytes()))
    return copy


def changed(rng: Rng, value: object) -> object:
    """Returns a JSON value in which one entry is another value, or missing."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(list(value)))
        if rng.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return value | {key: changed(rng, value[key])}
    return hostile_value(rng)


def chosen(rng: Rng, folder: Path, pattern: str = "*") -> Path:
    """Returns one of the paths of a folder that match a pattern."""
    paths = sorted(folder.glob(pattern))
    return paths[rng.integers(0, len(paths))]
