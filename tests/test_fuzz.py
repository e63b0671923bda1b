"""The fuzzer: a short run finds no fault, its cases are told by their numbers, and no process takes it along."""

import functools

import pytest
from fuzz_victims import victim

from experiments import fuzz_processes
from experiments.fuzz import FINE, outcome_of, summary
from experiments.fuzz_cases import CYCLE, KINDS, run_case
from experiments.fuzz_damage import damaged
from experiments.fuzz_originals import prepare
from sail_jax.errors import SailError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    prepare(folder)
    return folder


@pytest.mark.slow
def test_a_short_run_finds_no_fault(originals, tmp_path, capsys):
    """In this process, which a crash would end."""
    run = functools.partial(outcome_of, seed=1, originals=originals, scratch=tmp_path)
    found = summary((number, *run(number)) for number in range(4 * len(CYCLE)))
    assert found["faults"] == []
    assert set(found["counts"]) == set(KINDS) and sum(sum(of.values()) for of in found["counts"].values()) == 200
    # Neither all inputs are damaged beyond repair, nor none.
    totals = {outcome: sum(of.get(outcome, 0) for of in found["counts"].values()) for outcome in FINE}
    assert min(totals.values()) > 20


def test_a_case_is_told_by_its_number(monkeypatch, tmp_path):
    seen = []

    def drawn(rng, originals, scratch):
        seen.append(damaged(rng, b"0123456789" * 10))
        raise SailError("refused")

    monkeypatch.setitem(KINDS, CYCLE[7], (drawn, 1))
    for number, seed in ((7, 0), (7, 0), (7 + len(CYCLE), 0), (7, 1)):
        with pytest.raises(SailError):
            run_case(seed, number, tmp_path, tmp_path / "scratch")
    assert seen[0] == seen[1] and len(set(seen)) == 3


def test_faults_are_listed_with_their_numbers():
    found = summary([(7, "failed", "ValueError: x"), (0, "read", ""), (1, "refused", "")])
    assert found["faults"] == [{"case": 7, "kind": CYCLE[7], "outcome": "failed", "said": "ValueError: x"}]
    assert found["counts"][CYCLE[0]] == {"read": 1, "refused": 1}


def test_a_process_that_dies_or_hangs_is_noticed_and_started_again(monkeypatch):
    monkeypatch.setattr(fuzz_processes, "FIRST_LIMIT", 5.0)
    monkeypatch.setattr(fuzz_processes, "LIMIT", 2.0)
    found = {number: outcome for number, *outcome in fuzz_processes.run_cases(victim, range(8), 2)}
    assert found.pop(1)[0] == "died" and found.pop(3) == ["died", "status 7"] and found.pop(5)[0] == "hung"
    assert found == {number: ["read", str(number)] for number in (0, 2, 4, 6, 7)}
