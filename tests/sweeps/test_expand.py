"""Sweep files, their members and the members' names."""

import dataclasses
import re

import pytest
import tiny

from sail_jax import sweeps
from sail_jax.errors import SailError
from sail_jax.sweeps import Sweep, draws, expand, grid, integers, log_uniform, uniform, variants, zipped

FILES = sorted((tiny.REPO / "configs" / "sweeps").glob("*.py"))


def names(*axes, **others):
    return [member.name for member in expand(Sweep("quickstart", axes, **others))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_packaged_sweep_expands(file):
    sweep = sweeps.load(file)
    assert sweep.name == file.stem and sweep == sweeps.load(file.stem) == sweeps.load(f"configs/sweeps/{file.name}")
    assert len({member.name for member in expand(sweep)}) == len(expand(sweep)) > 1


def test_members_are_all_combinations_with_the_first_seed_first():
    rates = grid("optimizer.peak", [1e-3, 0.01])
    kinds = variants({"main": (), "without micl": ("objective.weights.micl=0.0",)})
    members = expand(Sweep("quickstart", [kinds, rates], overrides=["train.steps=5"], seeds=[3, 1]))
    assert [member.name for member in members[:4]] == [
        "main,peak=0.001,seed=3",
        "main,peak=0.01,seed=3",
        "without_micl,peak=0.001,seed=3",
        "without_micl,peak=0.01,seed=3",
    ]
    last = members[-1]
    assert (last.seed, last.group) == (1, "without_micl,peak=0.01")
    assert last.axes == {"variant": "without micl", "optimizer.peak": 0.01}
    assert last.overrides == ("train.steps=5", "objective.weights.micl=0.0", "optimizer.peak=0.01", "seed=1")
    assert names(seeds=[0]) == ["main,seed=0"]


def test_names_depend_on_the_values_alone_and_are_safe_as_folders():
    forward = {m.name: m for m in expand(Sweep("quickstart", [grid("data.batch_size", [16, 8])]))}
    assert forward == {m.name: m for m in expand(Sweep("quickstart", [grid("data.batch_size", [8, 16])]))}
    both = names(zipped({"stages.a.peak": [1e-5], "optimizer.peak": [2]}), grid("eval.ks", [(1, 10)]))
    assert both == ["stages.a.peak=1e-05,optimizer.peak=2,ks=1_10,seed=0"]
    (odd,) = names(grid("prompt.unified", ["Räume/../; $(x) " + "y" * 300]))
    assert re.fullmatch(r"[\w.+,=-]{1,120}", odd, flags=re.ASCII)


def test_draws_are_those_of_their_seed_and_stay_when_there_are_more():
    def values(n, seed=0, how=None):
        axis = draws("optimizer.peak", how or log_uniform(1e-4, 1e-2), n=n, seed=seed)
        return [point.values["optimizer.peak"] for point in axis.points]

    assert values(3) == values(8)[:3] != values(3, seed=1)
    assert all(1e-4 <= value <= 1e-2 for value in values(200)) and 70 < sum(v < 1e-3 for v in values(200)) < 130
    assert all(2 <= value <= 3 for value in values(50, how=uniform(2, 3)))
    assert set(values(50, how=integers(2, 4))) == {2, 3, 4}
    together = draws({"optimizer.peak": uniform(0, 1), "optimizer.b2": uniform(0.9, 0.99)}, n=2, seed=0)
    assert together.columns == ("optimizer.peak", "optimizer.b2") and len(together.points) == 2


@pytest.mark.parametrize(
    ("axes", "others", "said"),
    [
        ([grid("a", [1]), zipped({"a": [2]})], {}, "Two axes vary 'a'"),
        ([grid("prompt.unified", ["a b", "a_b"])], {}, "Two members have the name 'unified=a_b'"),
        ([grid("a", [1])], {"seeds": [0, 0]}, "The seed 0 stands twice"),
        ([grid("a", [1])], {"seeds": []}, "at least one seed"),
        ([grid("seed", [1])], {}, "name the seeds by seeds="),
        ([grid("a", [1, 2])], {"baseline": "a=3"}, "The baseline 'a=3' is no member; it may be a=2 or a=1"),
    ],
)
def test_a_sweep_that_is_wrong_is_refused(axes, others, said):
    with pytest.raises(SailError, match=re.escape(said)):
        expand(Sweep("quickstart", axes, **others))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grid("a", []), "at least one; it has {'a': 0}"),
        (lambda: grid("a", 3), "The axis of a takes a list of values, not 3"),
        (lambda: grid("a", "bc"), "The axis of a takes a list of values, not 'bc'"),
        (lambda: Sweep("b", grid("a", [1])), "`axes` of a sweep takes a sequence"),
        (lambda: Sweep("b", overrides="a=1"), "`overrides` of a sweep takes a sequence"),
        (lambda: Sweep("b", seeds=3), "`seeds` of a sweep takes a sequence, such as range(3), not 3"),
        (lambda: Sweep("b", search={"a": [1]}), "`search` of a sweep takes Search("),
        (lambda: zipped({"a": [1], "b": [1, 2]}), "equally many values"),
        (lambda: variants({"x": "a=1"}), "write ('a=1',)"),
        (lambda: variants({}), "at least one"),
        (lambda: draws("a", n=3), "needs a distribution"),
        (lambda: log_uniform(0, 1), "above 0"),
        (lambda: uniform(1, 1), "is empty"),
    ],
)
def test_an_axis_that_is_wrong_is_refused(make, said):
    with pytest.raises(SailError, match=re.escape(said)):
        make()


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(SailError, match="There is no sweep file peek. Did you mean peak?"):
        sweeps.load("peek")
    (tmp_path / "x.py").write_text("def sweep():\n    return 3\n")
    with pytest.raises(SailError, match=r"x.py has no sweep\(\) that returns a Sweep"):
        sweeps.load(tmp_path / "x.py")
    (tmp_path / "y.py").write_text("from sail_jax.sweeps import grid\n\n\ndef sweep():\n    return grid('a', [])\n")
    with pytest.raises(SailError, match="y.py, line 5: .*at least one"):
        sweeps.load(tmp_path / "y.py")


def test_a_sweep_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sweeps.load("peak").base = "world"
