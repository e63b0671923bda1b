"""What docs/benchmarks.md says is what their figures say, and what needs no clock holds anywhere."""

import tiny

from experiments.benchmarks import __main__ as runner
from experiments.benchmarks import packing


def test_the_table_of_the_page_is_that_of_the_figures():
    page = runner.PAGE.read_text(encoding="utf-8")
    assert page == runner.with_table(page), "run: python -m experiments.benchmarks --table"


def test_every_benchmark_is_run():
    scripts = {path.stem for path in (tiny.REPO / "experiments" / "benchmarks").glob("*.py")}
    assert scripts == {*runner.NEEDS, "gpu", "common", "__main__"}


def test_packed_batches_are_hardly_padded():
    drawn = [packing.shares(64, seed) for seed in range(5)]
    mean = {name: sum(entry[name] for entry in drawn) / len(drawn) for name in drawn[0]}
    assert mean["packed"] >= 0.97 and mean["padded"] < 0.6
    assert mean["frames_cut"] < 0.06 and mean["text_cut"] < 0.06
