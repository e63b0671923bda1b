"""The report of runs that differ by their seed alone, and of runs of other data, of which none is the best."""

import dataclasses
import json
import re

import numpy as np
import pytest
from scipy import stats

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.schema import to_dict
from sail_jax.evaluation.report.data import RunReport, StoredResult
from sail_jax.evaluation.report.page import png_folder, write_report
from sail_jax.evaluation.report.seed_groups import group_by_seed
from sail_jax.patterns import Pattern
from sail_jax.runs.directory import RunDirectory


def figures(value, corpus=5678):
    metrics = {"recall@10": value, "separability/overlap": 1 - value}
    return [StoredResult("trained", "i2i", Pattern("VTA", "VTA"), True, 96, metrics, 1234, 0, corpus)]


def run(name, seed, value, *, peak=1e-3, corpus=5678, log=(), **changes):
    config = {"seed": seed, "optimizer": {"peak": peak}, "train": {"tracker_name": name}, "data": {"dir": "/d"}}
    return RunReport(name, figures(value, corpus), log, 60, config=config | changes)


def page_of(path, *runs):
    write_report(path, runs)
    return path.read_text()


def cells_of(page, row, figure="i2i/recall@10"):
    part = page.partition(f"<h3>{figure}</h3>")[2].partition("</table>")[0]
    (found,) = re.findall(rf"<tr><th[^>]*>{re.escape(row)}</th>(.*?)</tr>", part)
    return re.findall(r"<td([^>]*)>([^<]*)</td>", found)


def test_runs_that_differ_by_their_seed_alone_are_one_row(tmp_path):
    base, other = [0.40, 0.42, 0.45], [0.48, 0.51, 0.54]
    logs = [[{"step": step, "loss/copair": 1 / step + seed} for step in (1, 2, 3)] for seed in range(3)]
    runs = [run(f"a/{seed}", seed, value, log=logs[seed]) for seed, value in enumerate(base)]
    runs += [run(f"b/{seed}", seed, value, log=logs[seed], peak=2e-3) for seed, value in enumerate(other)]
    page = page_of(tmp_path / "r.html", *runs)
    first, second = cells_of(page, "a/0 (seeds 0, 1, 2)"), cells_of(page, "b/0 (seeds 0, 1, 2)")
    low, high = stats.ttest_1samp(base, 0).confidence_interval()
    assert [cell for _, cell in first] == [
        *("3", "42.3 %", f"{100 * stats.sem(base):.1f}", f"{100 * low:.1f} % to {100 * high:.1f} %", "baseline"),
        *("", "", ""),
    ]
    test = stats.ttest_rel(other, base)
    low, high = test.confidence_interval()
    assert [cell for _, cell in second][4:] == [
        f"{100 * np.mean(np.subtract(other, base)):+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"{test.statistic:+.2f} (4.30)",
        "better",
    ]
    assert [mark for mark, _ in second][1] == ' class="best"' and page.count('class="best"') == 2  # and of the overlap
    assert "<th>a/0</th>" in page and 'class="tile"' not in page
    # One line and band per group, not per run.
    assert {path.stem for path in png_folder(tmp_path / "r.html").iterdir()} == {"loss-copair", "modalities-i2i"}
    assert [page.count(f"\u200b{name}/0 (seeds 0, 1, 2)</text>") for name in "ab"] == [1, 1]


def test_what_differs_by_more_is_a_row_of_its_own():
    runs = [run("a", 0, 0.1), run("b", 1, 0.2), run("c", 0, 0.3), run("d", 2, 0.3, peak=2.0), RunReport("e")]
    runs.append(dataclasses.replace(run("f", 3, 0.1), step=30))
    assert [group.name for group in group_by_seed(runs)] == ["a (seeds 0, 1)", "c", "d", "e", "f"]
    assert group_by_seed(runs)[0].values("i2i/recall@10") == {0: 0.1, 1: 0.2}


def test_single_runs_are_compared_as_before_and_seeds_alone_mark_none(tmp_path):
    page = page_of(tmp_path / "two.html", run("a", 0, 0.1), run("b", 0, 0.2, peak=2.0))
    assert "Over seeds" not in page and 'class="best"' in page
    page = page_of(tmp_path / "seeds.html", run("a", 0, 0.1), run("b", 1, 0.2))
    assert "Over seeds" in page and 'class="best"' not in page and "baseline</td>" not in page


@pytest.mark.parametrize("other", [{"corpus": 99}, {"data": {"dir": "/elsewhere"}}])
def test_no_winner_is_marked_across_data(tmp_path, other):
    page = page_of(tmp_path / "two.html", run("a", 0, 0.1), run("b", 0, 0.2, **other))
    assert 'class="best"' not in page and "i2i: the runs were evaluated on different data" in page
    runs = [run("a", seed, 0.1 + seed / 100) for seed in range(3)] + [
        run("b", s, 0.3 + s / 99, **other) for s in range(3)
    ]
    page = page_of(tmp_path / "seeds.html", *runs)
    assert 'class="best"' not in page and "better</td>" not in page and "i2i: the runs were" in page


def test_the_verb_reads_the_configs_of_the_runs(tmp_path):
    folders = [tmp_path / "runs" / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        files = RunDirectory(folder)
        folder.mkdir(parents=True)
        files.save_config(config_lib.load("glyphs", [f"seed={seed}", f"train.tracker_name=m{seed}", "data.dir=data/g"]))
        result = to_dict(figures(0.25 + seed / 4)[0]) | {"view": "VTA->VTA"}
        files.evaluation.write_text(json.dumps({"step": 5, "results": [result]}))
    output = tmp_path / "report.html"
    assert main(["report", *(f"--workdir={folder}" for folder in folders), "--output", str(output)]) == 0
    assert [cell for _, cell in cells_of(output.read_text(), "0 (seeds 0, 1)")][:2] == ["2", "37.5 %"]
