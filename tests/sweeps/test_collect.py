"""What a sweep's members found: table, report, statistics over seeds, and what is refused or left out."""

import dataclasses
import html
import json
import re

import numpy as np
import polars as pl
import pytest
import sweep_folders
from scipy import stats
from sweep_folders import BASELINE, finish, make

from sail_jax.cli import main
from sail_jax.errors import SailError
from sail_jax.sweeps.collect import collect, table
from sail_jax.sweeps.effects import Point, main_effects
from sail_jax.sweeps.folder import Status


def verb(*words):
    assert main(["sweep", "collect", *map(str, words)]) == 0


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A finished sweep, after `sweep collect`."""
    folder, members = make(tmp_path_factory.mktemp("sweep"))
    verb("--workdir", folder.path)
    return folder, members, (folder.path / "report.html").read_text()


def cells_of(page, figure, row):
    """The cells of a row of the table of a figure, with their marks."""
    part = page.partition(f"<h3>{figure}</h3>")[2].partition("</table>")[0]
    (found,) = re.findall(rf"<tr><th[^>]*>{re.escape(html.escape(row))}</th>(.*?)</tr>", part)
    return re.findall(r"<td([^>]*)>([^<]*)</td>", found)


def test_the_table_has_a_row_for_each_member_in_both_formats(collected):
    folder, members, _ = collected
    parquet, csv = pl.read_parquet(folder.path / "results.parquet"), pl.read_csv(folder.path / "results.csv")
    assert parquet.columns == csv.columns and parquet["member"].to_list() == csv["member"].to_list()
    assert parquet["member"].to_list() == [member.name for member in members]
    row = parquet.row(by_predicate=pl.col("member") == "without_mICL,peak=0.002,seed=2", named=True)
    expected = {"variant": "without mICL", "optimizer.peak": 2e-3, "seed": 2, "state": "done", "device_hours": 1.0}
    assert expected.items() <= row.items() and row["i2i/recall@10"] == pytest.approx(0.56) and row["step"] == 50
    assert row["i2i/auc"] is None and row["not_compared"] == "" and row["combination"] == "without_mICL,peak=0.002"


def test_mean_error_interval_and_paired_difference_are_those_of_scipy(collected):
    _, members, page = collected
    values = {
        name: [sweep_folders.recall(m) for m in members if m.group == name] for name in {m.group for m in members}
    }
    for name in ("main,peak=0.002", "without_mICL,peak=0.002"):
        found = [cell for _, cell in cells_of(page, "i2i/recall@10", name)]
        low, high = stats.ttest_1samp(values[name], 0).confidence_interval()
        assert found[0] == "3" and found[1] == f"{100 * np.mean(values[name]):.1f} %"
        assert found[2] == f"{100 * stats.sem(values[name]):.1f}"
        assert found[3] == f"{100 * low:.1f} % to {100 * high:.1f} %"
        assert found[4] == "+10.0" and "(4.30)" in found[6] and found[7] == "better" and found[8] == "3.00"
    base = [cell for _, cell in cells_of(page, "i2i/recall@10", BASELINE)]
    assert base[0] == "3" and base[4:8] == ["baseline", "", "", ""]
    assert [cell for _, cell in cells_of(page, "i2i/recall@10", "chance")][:2] == ["", "1.0 %"]


def test_no_row_is_bold_where_two_are_alike_and_one_where_it_is_better_than_all(collected, tmp_path):
    assert 'class="best"' not in collected[2]  # the variants do not differ

    def best(member):
        return sweep_folders.recall(member) + (0.05 + 0.002 * member.seed) * (member.axes["variant"] == "main")

    folder, _ = make(tmp_path, value=best)
    verb("--workdir", folder.path)
    page = (tmp_path / "report.html").read_text()
    rows = ["main,peak=0.001", "main,peak=0.002", "without_mICL,peak=0.001", "without_mICL,peak=0.002"]
    marks = {
        row: [place for place, (mark, _) in enumerate(cells_of(page, "i2i/recall@10", row)) if mark] for row in rows
    }
    assert marks == {"main,peak=0.001": [], "main,peak=0.002": [1], **{row: [] for row in rows[2:]}}
    # The lower overlap is the better one; a norm is not compared.
    marked = cells_of(page, "i2i/separability/overlap", "main,peak=0.002")
    assert marked[1][0] == ' class="best"' and marked[7][1] == "better"
    assert not any(mark for mark, _ in cells_of(page, "i2i/spread/mean_norm", "main,peak=0.002"))


def test_the_page_stands_alone_with_curves_effects_and_cost(collected):
    folder, _, page = collected
    for shown in ("Effects of the axes", "Parallel coordinates", "12.00", "12 done", "optimizer.peak", "q2i/recall@10"):
        assert shown in page
    assert (
        not re.search(r"<script [^>]*src|<link|https?://(?!www.w3.org)", page) and "prefers-color-scheme: dark" in page
    )
    assert {path.stem for path in (folder.path / "report_files").iterdir()} == {
        *("loss-pairs", "evaluation-i2i", "effect-variant", "effect-optimizer.peak", "parallel")
    }
    assert page.count("<svg") == 5


def test_effects_are_differences_to_the_mean_of_the_axis(collected):
    folder, members, page = collected
    points = [
        Point(m.axes, m.seed, sweep_folders.recall(m) + 0.01 * m.seed * m.axes["optimizer.peak"]) for m in members
    ]
    variant, peak = main_effects(points, ["variant", "optimizer.peak"])
    assert [effect.axis for effect in (variant, peak)] == ["variant", "optimizer.peak"]
    assert all(found.mean == pytest.approx(0, abs=1e-12) for found in variant.values.values())
    of_seeds = [(0.1 + 0.0002 * (seed == 1) + 0.01 * seed * 1e-3) / 2 for seed in range(3)]
    found = peak.values["0.002"]
    assert found.n == 3 and found.mean == pytest.approx(np.mean(of_seeds)) == -peak.values["0.001"].mean
    assert (found.low, found.high) == pytest.approx(stats.ttest_1samp(of_seeds, 0).confidence_interval())


def test_axes_that_vary_together_are_one_and_incomplete_ones_have_no_effect():
    points = [Point({"a": a, "b": [a], "c": c}, 0, a + c) for a in (1, 2) for c in (0, 1)]
    both, other = main_effects(points, ["a", "b", "c"])
    assert (both.axis, other.axis) == ("a, b", "c")
    assert both.values["2, [2]"].mean == 0.5 and other.values["0"].mean == -0.5 and other.values["0"].n == 1
    apart = [Point({"a": 1, "c": 0}, 0, 1.0), Point({"a": 1, "c": 1}, 0, 1.0), Point({"a": 2, "c": 2}, 0, 2.0)]
    assert [effect.values for effect in main_effects(apart, ["a", "c"])] == [{}, {}]


def test_members_without_figures_are_listed_with_the_reason(tmp_path, capsys):
    folder, members = make(tmp_path, seeds=2)
    names = [member.name for member in members]
    failed = Status("failed", 2, exit_code=1, device_seconds=1800.0, error="<b>no space</b> left")
    folder.write_status(names[0], failed)
    folder.write_status(names[1], Status("running", device_seconds=0.0))
    folder.run(names[2]).metrics.unlink()
    folder.run(names[3]).metrics.write_text("{")
    verb("--workdir", folder.path, "--output", tmp_path / "out")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    page = (tmp_path / "out" / "report.html").read_text()
    reasons = ["failed: <b>no space</b> left", "running", "done, but there is no metrics.json", "can't be read"]
    for name, reason in zip(names, reasons, strict=False):
        assert f"Not compared: {name} (" in said and reason in said and html.escape(reason, quote=True) in page
    assert "<b>no space" not in page and f"sail-jax evaluate --workdir {folder.run(names[2]).path}" in said
    frame = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert len(frame) == 8 and frame["i2i/recall@10"].null_count() == 4 and frame["device_hours"].sum() == 6.5
    assert [cell for _, cell in cells_of(page, "i2i/recall@10", BASELINE)][0] == "1"


def test_a_sweep_without_a_finished_member_has_a_table_too(tmp_path):
    folder, members = make(tmp_path, seeds=1)
    for member in members:
        folder.write_status(member.name, Status())
    verb("--workdir", folder.path)
    assert pl.read_csv(tmp_path / "results.csv")["state"].to_list() == ["waiting"] * 4
    assert (tmp_path / "report.html").read_text().count("waiting") >= 5


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    folder, _ = make(tmp_path, seeds=1)
    verb("--workdir", folder.path)
    page = (tmp_path / "report.html").read_text()
    assert [cell for _, cell in cells_of(page, "i2i/recall@10", "main,peak=0.002")][:8] == [
        *("1", "50.0 %", "–", "–", "+10.0", "–", "–", "undecided")
    ]
    assert 'class="best"' not in page


def test_members_of_other_data_or_tasks_are_refused_in_one_line(tmp_path):
    folder, members = make(tmp_path)
    finish(folder, members[5], 0.5, corpus=99)
    with pytest.raises(SailError, match=r"peak=0.002,seed=1 of .* i2i has 350 queries in 99 items, not 350 .* 1,536"):
        collect(folder.path)
    finish(folder, members[5], 0.5)
    record = folder.read()
    moved = [dataclasses.replace(r, data="fedc" if place == 5 else r.data) for place, r in enumerate(record.members)]
    folder.write(dataclasses.replace(record, members=tuple(moved)))
    with pytest.raises(
        SailError, match=r"differ in their data.* 0123456789abcdef of main,peak=0.001,seed=0 and 10 more; "
    ) as error:
        collect(folder.path)
    assert "\n" not in str(error.value) and "--data 0123456789abcdef" in str(error.value)
    chosen = collect(folder.path, data="0123")
    assert len(chosen.compared) == 11 and chosen.outcomes[5].missing == "done, on other data (fedc)"
    assert table(chosen)["i2i/recall@10"].null_count() == 0  # its figures are in the table all the same
    with pytest.raises(SailError, match=r"No member .* data 'abc'; there are 0123456789abcdef, fedc"):
        collect(folder.path, data="abc")


def test_names_that_are_not_there_get_the_nearest(tmp_path):
    folder, _ = make(tmp_path, seeds=1, baseline="")
    assert collect(folder.path).baseline == ""
    with pytest.raises(SailError, match=r"no combination 'main,peak=0.01'. Did you mean main,peak=0.001"):
        collect(folder.path, baseline="main,peak=0.01")
    with pytest.raises(
        SailError, match=r"no member has the figure 'i2i/recall@11'|'i2i/recall@11'. Did you mean i2i/recall@1"
    ):
        collect(folder.path, metric="i2i/recall@11")
    with pytest.raises(SailError, match="has no sweep"):
        collect(tmp_path / "nothing")


def test_values_of_axes_that_are_no_numbers_are_text(tmp_path):
    folder, _ = make(tmp_path, seeds=1)
    values = json.loads(folder.file.read_text())
    for place, member in enumerate(values["members"]):
        member["axes"] = {"state": [1, place] if place else "x", "optimizer.peak": place}
    folder.file.write_text(json.dumps(values | {"axes": ["state", "optimizer.peak"]}))
    frame = table(collect(folder.path))
    assert frame["axis.state"].to_list() == ["x", "[1, 1]", "[1, 2]", "[1, 3]"] and frame["state"][0] == "done"


def test_a_small_test_is_headed_by_a_recall_that_a_random_order_does_not_reach(tmp_path):
    folder, members = make(tmp_path / "sweep")
    assert collect(folder.path).shown_figures() == ["i2i/recall@10", "q2i/recall@10"]
    for member in members:
        finish(folder, member, 0.5, corpus=12)
    assert collect(folder.path).shown_figures() == ["i2i/recall@10", "i2i/recall@1", "q2i/recall@10"]
