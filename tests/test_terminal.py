"""What a user wrote is printed as it is: brackets and colons are no markup."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from rich.table import Table

from sail_jax.cli import main
from sail_jax.cli.common import print_wide
from sail_jax.cli.train import train_and_print
from sail_jax.config import Config
from sail_jax.items import TEXT_FIELDS
from sail_jax.terminal import Terminal, console
from sail_jax.vectors.embedding_set import EmbeddingInfo, part_path, write_info, write_part

# As markup: the name of a style, the end of one that was never begun, an emoji.
NAMES = ("[a]", "x[/b]", ":cat:")


@pytest.mark.parametrize("name", NAMES)
def test_lines_and_tables_have_it_as_it_is(name, capsys):
    console.print(f"Written to runs/{name}.")
    Terminal(stderr=True).print(f"{name} is damaged.", style="yellow")
    table = Table("member", name, title=f"of {name}")
    table.add_row(f"0 {name}", f"1 {name}")
    print_wide(table)
    console.print(table)
    said = capsys.readouterr()
    assert said.out.startswith(f"Written to runs/{name}.\n") and said.err == f"{name} is damaged.\n"
    assert said.out.count(name) == 1 + 2 * 4


def test_a_table_is_as_wide_as_the_terminal_unless_words_were_cut(capsys, monkeypatch):
    narrow, long = Table("why"), Table("name")
    narrow.add_row("all rows of the sample differ, " * 10)
    long.add_row("x" * 100)

    def widths(terminal):
        monkeypatch.setattr("sail_jax.cli.common.console", Terminal(width=80, force_terminal=terminal))
        for table in (narrow, long):
            print_wide(table)
            yield max(map(len, capsys.readouterr().out.splitlines()))

    assert list(widths(True)) == [80, 104]
    assert list(widths(False)) == [120, 104]


@pytest.mark.parametrize("name", NAMES)
def test_verbs_print_such_paths(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, output = tmp_path / name / "embeddings", tmp_path / name / "items.faiss"
    folder.mkdir(parents=True)
    write_part(part_path(folder, 0), ["1", "2"], np.eye(2, 8, dtype=np.float32), "float32")
    write_info(folder, EmbeddingInfo("runs/x", "0123", 8, "float32", "VTA", TEXT_FIELDS, ""))
    assert main(["index", "--embeddings", str(folder), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"Indexed 2 vectors of 8 dimensions: {output}." in said and "items.faiss: filling 2/2" in said
    other = Path(name) / "other.py"
    other.write_text("from sail_jax.config import preset\n\n\ndef get_config():\n    return preset('tiny')\n")
    assert main(["config", "diff", str(tiny.REPO / "configs" / "quickstart.py"), str(other)]) == 0
    assert f" {other} " in capsys.readouterr().out
    assert main(["report", "--workdir", f"runs/{name}"]) == 2
    assert f"runs/{name} holds no evaluation.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_train_prints_such_a_workdir(name, tmp_path, monkeypatch, capsys):
    for start in (3, 0):
        result = SimpleNamespace(start=start, steps=3, seconds=1.0, bad_records=0, cuts={})
        monkeypatch.setattr("sail_jax.training.loop.train", lambda *_, result=result, **__: result)
        train_and_print(Config(), tmp_path / name)
        assert str(tmp_path / name) in capsys.readouterr().out


def test_nothing_is_printed_past_it():
    """Rich reads markup by default: other consoles, and names of tasks in its own column, would be read so."""
    past = re.compile(r"(?<!\w)Console\(|rich\.print|get_console\(|TextColumn\(\"\{task\.description\}\"\)")
    found = [
        f"{path}:{number}"
        for path in (tiny.REPO / "sail_jax").rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if past.search(line) and path.name != "terminal.py"
    ]
    assert not found, f"Print by sail_jax.terminal, and name tasks by NameColumn of sail_jax.progress: {found}."
