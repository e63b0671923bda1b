"""Bars in a terminal of 80 columns, lines that are flushed elsewhere."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from sail_jax import progress as progress_lib
from sail_jax.progress import NameColumn, Progress, track
from sail_jax.terminal import Terminal


class File(io.StringIO):
    """A file that tells what was flushed to it."""

    flushed = ""

    def flush(self):
        self.flushed = self.getvalue()


@pytest.fixture
def now(monkeypatch):
    """The clock of progress, in seconds."""
    clock = [0.0]
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: clock[0])
    return clock


def test_a_file_gets_a_line_when_one_is_due_and_one_at_the_end(now):
    file = File()
    with Progress(console=Console(file=file), get_time=lambda: now[0]) as progress:
        task = progress.add_task("embed", total=4000)
        for at, done in ((1, 1000), (31, 2000), (40, 3000)):
            now[0] = at
            progress.update(task, completed=done)
        assert re.fullmatch(r"embed 2,000/4,000, ETA 0:01:00\n", file.flushed)
        progress.advance(task, 1000)
    assert file.getvalue().splitlines()[1:] == ["embed 4,000/4,000, took 0:00:40"]


def test_a_new_name_is_a_line(now):
    file = File()
    with Progress(console=Console(file=file)) as progress:
        task = progress.add_task("cut", total=2)
        for now[0], name in ((1, "items"), (6, "copair"), (20, "copair")):
            progress.update(task, description=name)
    assert file.flushed == "copair 0/2\n"


def test_a_note_is_a_line_where_all_lines_are_asked_for(now):
    file = File()
    with Progress(console=Console(file=file), every=None) as progress:
        task = progress.add_task("train", total=9)
        now[0] = 1000
        progress.advance(task)
        assert not file.getvalue()
        progress.say(task, "loss 0.123")
    assert file.flushed == "train 1/9, loss 0.123\n"


def test_nothing_is_shown_where_another_process_shows_it(now):
    file = File()
    with Progress(console=Console(file=file), disable=True) as progress:
        task = progress.add_task("embed", total=2)
        now[0] = 100
        progress.advance(task)
        progress.say(task, "note")
    assert file.getvalue() == ""


def test_bar_total_and_eta_can_be_read_in_80_columns():
    file = File()
    console = Terminal(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    columns = (NameColumn(), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, every=None, auto_refresh=False) as progress:
        task = progress.add_task("train 2_multimodal", total=2_000_000, completed=1_234_567)
        note = "loss 0.123, 2.31 steps/s, 14,800 items/s, 70.2 GiB, MFU 38%, 12% waiting for data"
        progress.say(task, note)
        progress.refresh()
    shown = [line for line in re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", file.getvalue()).splitlines() if line.strip()]
    assert re.fullmatch(r"train 2_multimodal .{24} 1234567/2000000 \S+ *", shown[-2])
    assert shown[-1].strip().startswith("loss 0.123, 2.31 steps/s, 14,800 items/s, 70.2 GiB, MFU 38%")
    assert all(len(line) <= 80 for line in shown)


@pytest.mark.parametrize("columns", [(), (NameColumn(),)], ids=["those of rich", "own"])
def test_a_path_in_the_name_of_a_task_is_no_markup(columns):
    file = File()
    console = Terminal(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        progress.add_task("[a]/x[/b]: filling", total=2)
        progress.refresh()
    assert "[a]/x[/b]: filling" in file.getvalue()


def test_track_yields_all(capsys):
    assert list(track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    assert re.fullmatch(r"letters 3/3, took 0:00:0\d\n", capsys.readouterr().out)
    assert list(track("abc", "letters", disable=True)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
