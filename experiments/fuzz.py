"""Feeds damaged and made-up inputs to all that reads files and settings, and counts what comes of it.

    python -m experiments.fuzz --cases 10000
    python -m experiments.fuzz --case 1234

The kinds of inputs are those of `experiments/fuzz_cases.py`. A case is told by its number and the seed alone: `--case`
runs one again, in this process. A case is "read" or "refused", with a message of ours; all else is a fault: "failed"
with another exception, "long" with a message that nobody reads, "died" with its process, or "hung". The counts and all
faults are written to experiments/results/fuzz.json; the status is 1 if there are any.
"""

import argparse
import collections
import functools
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.fuzz_cases import CYCLE, run_case
from experiments.fuzz_originals import prepare
from experiments.fuzz_processes import run_cases
from sail_jax.errors import SailError

RESULT = Path(__file__).parent / "results" / "fuzz.json"
FINE = ("read", "refused")
# Characters of a message. That of an ingestion lists its first bad rows.
_LONGEST = 4000


def outcome_of(number: int, *, seed: int, originals: Path, scratch: Path) -> tuple[str, str]:
    """Runs a case in this process; returns its outcome, and the message or the end of the traceback.

    Args:
        number: the case.
        seed: the seed of all cases.
        originals: what `prepare` wrote.
        scratch: a folder, of which each process takes a part of its own.
    """
    try:
        run_case(seed, number, originals, scratch / str(os.getpid()))
    except SailError as error:
        said = str(error)
        return ("refused", "") if len(said) <= _LONGEST else ("long", said[:500])
    except BaseException as error:  # a panic of polars is no Exception
        return "failed", "".join(traceback.format_exception(error))[-2000:]
    return "read", ""


def summary(cases: Iterable[tuple[int, str, str]]) -> dict[str, Any]:
    """Returns the counts by kind and outcome, and all faults."""
    counts: dict[str, collections.Counter] = {kind: collections.Counter() for kind in dict.fromkeys(CYCLE)}
    faults = []
    for number, outcome, said in sorted(cases):
        kind = CYCLE[number % len(CYCLE)]
        counts[kind][outcome] += 1
        if outcome not in FINE:
            faults.append({"case": number, "kind": kind, "outcome": outcome, "said": said})
    return {"counts": {kind: dict(sorted(found.items())) for kind, found in counts.items()}, "faults": faults}


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases (10000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (0)")
    parser.add_argument("--case", type=int, help="run the case of this number alone, in this process")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that run cases (processors)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sail-jax-fuzz-") as folder:
        originals, scratch = Path(folder, "originals"), Path(folder, "scratch")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder, "compiled")))  # of the processes
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        prepare(originals)
        run = functools.partial(outcome_of, seed=options.seed, originals=originals, scratch=scratch)
        if options.case is not None:
            outcome, said = run(options.case)
            print(f"{CYCLE[options.case % len(CYCLE)]}: {outcome}\n{said}")
            return outcome not in FINE
        began, cases = time.monotonic(), []
        for case in run_cases(run, range(options.first, options.first + options.cases), options.processes):
            cases.append(case)
            number, outcome, said = case
            if outcome not in FINE:
                print(f"case {number} {outcome}: {said.strip().rpartition(chr(10))[2][:200]}", flush=True)
            if len(cases) % 500 == 0:
                print(f"{len(cases):,} cases in {time.monotonic() - began:.0f} s", flush=True)
    how = {"seed": options.seed, "first": options.first, "cases": len(cases)}
    how |= {"seconds": round(time.monotonic() - began), "processes": options.processes, "machine": platform.machine()}
    found = how | summary(cases)
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    for kind, counts in found["counts"].items():
        print(f"{kind:14}", ", ".join(f"{outcome} {count}" for outcome, count in counts.items()))
    return bool(found["faults"])


if __name__ == "__main__":
    sys.exit(_main())
