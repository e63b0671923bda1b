"""Searches: what is declared, what Optuna is asked and told, and that an interrupted search repeats nothing."""

import sys

import pytest

from sail_jax.errors import SailError
from sail_jax.sweeps import Member, Search, Sweep, SweepFolder, grid, integers, log_uniform, read, uniform
from sail_jax.sweeps.expand import probes, trial_member
from sail_jax.sweeps.folder import Record, Status, SweepRecord
from sail_jax.sweeps.search import _end_trial
from sail_jax.sweeps.trials import Trials

SETTINGS = {
    "optimizer.peak": log_uniform(1e-4, 1e-2),
    "optimizer.b2": uniform(0.9, 0.99),
    "model.llm.layers": integers(1, 3),
    "objective.matryoshka": [(32, 16), (32,)],
}


def search(**changes):
    return Search(**{"settings": SETTINGS, "trials": 6, "pruner": "median", "startup": 2, **changes})


@pytest.fixture
def opened(tmp_path):
    pytest.importorskip("optuna")
    return lambda name="s", **changes: Trials(tmp_path / f"{name}.journal", "s", search(**changes))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_search_has_the_trials_of_one_that_was_not(opened, sampler):
    def asked(opened_for):
        found = []
        for number in range(5):
            trials = opened_for(number)
            found.append(trials.ask()[1])
            trials.end(number, -found[-1]["optimizer.b2"])
        return found

    whole = opened("whole", sampler=sampler)
    values = asked(lambda number: whole)
    assert values == asked(lambda number: opened("parts", sampler=sampler))
    assert len({each["optimizer.peak"] for each in values}) == 5
    assert opened("whole", sampler=sampler).begun() == dict(enumerate(values))
    assert all(1e-4 <= each["optimizer.peak"] <= 1e-2 and each["model.llm.layers"] in (1, 2, 3) for each in values)
    assert all(each["objective.matryoshka"] in [(32, 16), (32,)] for each in values)
    assert opened("whole", sampler=sampler, seed=1, trials=5).ask() is None
    assert opened("other", sampler=sampler, seed=1).ask()[1] != values[0]


def test_a_trial_below_the_median_is_pruned_and_each_step_reported_once(opened):
    trials = opened()
    for number, figure in enumerate((0.5, 0.6)):
        trials.ask()
        assert not trials.report(number, {10: figure})
        trials.end(number, figure)
    trials.ask(), trials.ask()
    assert trials.report(2, {10: 0.1}) and not trials.report(3, {10: 0.7})
    assert not opened().report(2, {10: 0.1})
    trials.end(2, None, pruned=True)
    trials.end(2, 0.9)  # it has ended
    trials.end(3, float("nan"))
    trials.ask()
    trials.refuse(4, "no room")
    states = [trial.state.name for trial in trials._study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert list(opened().begun()) == [0, 1, 2, 3] and trials._study.best_value == 0.6
    lowest = opened("low", direction="minimize", pruner="")
    for number, figure in enumerate((0.5, 0.6, 0.9)):
        lowest.ask()
        assert not lowest.report(number, {10: figure})
        lowest.end(number, figure)
    assert lowest._study.best_value == 0.5


def test_members_of_trials_and_the_ends_that_are_checked_first():
    sweep = Sweep("base", search=search(), overrides=["a=1"], seeds=[3], metric="i2i/recall@10")
    member = trial_member(sweep, 7, {"optimizer.peak": 0.1})
    assert (member.name, member.group) == ("trial=7,seed=3", "trial=7")
    assert member.overrides == ("a=1", "optimizer.peak=0.1", "seed=3") and member.axes == {"optimizer.peak": 0.1}
    found = {member.group: member.axes for member in probes(sweep)}
    assert list(found) == ["low", "high", "objective.matryoshka=32_16", "objective.matryoshka=32"]
    assert found["low"]["optimizer.peak"] == 1e-4 and found["high"]["model.llm.layers"] == 3
    assert found["objective.matryoshka=32"]["objective.matryoshka"] == (32,)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: search(sampler="grid"), "sampler of a search is 'grid'; it may be 'tpe' or 'random'"),
        (lambda: search(direction="up"), "'maximize' or 'minimize'"),
        (lambda: search(settings={"a": []}), "a list of values; a has none"),
        (lambda: search(settings={"a": "bc"}), "a list of values; a has none"),
        (lambda: search(settings={"b": [1], "a": 3}), "a list of values; a has none"),
        (lambda: search(trials=0), "at least one trial"),
        (lambda: probes(Sweep("b", search=search(), axes=[grid("a", [1])], metric="m")), "leave out `axes`"),
        (lambda: probes(Sweep("b", search=search(), seeds=range(2), metric="m")), "further seeds"),
        (lambda: probes(Sweep("b", search=search())), "needs the metric"),
    ],
)
def test_searches_that_make_no_sense(made, said):
    with pytest.raises(SailError, match=said):
        made()


def test_a_metric_that_no_member_has_ends_the_search(opened, tmp_path):
    trials = opened()
    folder, record = SweepFolder(tmp_path), Record(Member("trial=0,seed=0", {}, trials.ask()[0], ()), "", "")
    folder.run("trial=0,seed=0").path.mkdir(parents=True)
    folder.run("trial=0,seed=0").metrics.write_text('{"trained": {"i2i/recall@10": 0.5}}')
    folder.write_status("trial=0,seed=0", Status("done"))
    folder.write(SweepRecord("s", "b", "", "i2i/recal@10", (), (record,)))
    with pytest.raises(SailError, match="'i2i/recal@10', which trial=0,seed=0 does not have. Did you"):
        _end_trial(read(tmp_path), trials, "trial=0,seed=0")


def test_optuna_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SailError, match="A search needs Optuna: pip install"):
        Trials(tmp_path / "s", "s", search())
