"""Tests each direction of the report on its own purpose, and writes one page with a verdict on each.

    python -m experiments.reproduce                          all claims, on generated worlds
    python -m experiments.reproduce prompts cosent           some of them
    python -m experiments.reproduce --dry-run                members, steps and time; runs nothing
    python -m experiments.reproduce --config mine.py         the same ingredients in a config and data of your own
    python -m experiments.reproduce --report --earlier OTHER/results/reproduction.json
                                                             one page of what was run here and there

Each claim has two arms, the config with the ingredient and the same without it, of equal steps, schedule, data and
tokens. Condition, figure and test are written into WORKDIR/declared.json before anything runs, and are not changed
after it. The command may be stopped and given again: it goes on with what is missing.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.processes import REPO, machine
from experiments.reproduce.arms import Arms
from experiments.reproduce.bases import SCALES
from experiments.reproduce.claims import CLAIMS
from experiments.reproduce.earlier import Earlier, read_earlier
from experiments.reproduce.launch import job_request
from experiments.reproduce.page import markdown, verdict_counts, write_page
from experiments.reproduce.records import declare, declared, require_unchanged
from experiments.reproduce.run import Plan, Study, build_arms, check_all, declarations, measure, prepare_all, row_of
from experiments.reproduce.verdicts import Row, with_holm
from sail_jax import config as config_lib
from sail_jax.cli.parser import split_settings
from sail_jax.cli.signals import Signals
from sail_jax.errors import SailError, Stopped
from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.ownership import owning


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command."""
    try:
        with Signals(lambda stopped: os._exit(stopped.status)):
            own, overrides = split_settings(sys.argv[1:] if words is None else words)
            _run(_parser().parse_args(own), overrides)
    except SailError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print("Stopped; the same command goes on with what is missing.", file=sys.stderr)
        sys.exit(stopped.status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"some of {', '.join(CLAIMS)} (all of them)")
    parser.add_argument(
        "--workdir", type=Path, default=REPO / "runs" / "reproduce", help="folder of runs and results (runs/reproduce)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each arm, at least 2 (5)")
    parser.add_argument("--scale", choices=list(SCALES), default="cpu", help="size of worlds, model and steps (cpu)")
    parser.add_argument(
        "--config",
        help="config of your own, whose data are there: each claim takes its ingredient out of it; its settings may be "
        "changed by --config.NAME=VALUE",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (one per GPU; without one, one per processor)")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="run the members as SLURM jobs that ask for this, such as partition=gpu, gpus=8, minutes=600 or any "
        "option of sbatch; may be repeated, needs the extra `slurm`, and ends when they are submitted",
    )
    parser.add_argument(
        "--earlier",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="reproduction.json of another folder, whose claims are put on the page where this folder has none; may be "
        "repeated",
    )
    parser.add_argument("--report", action="store_true", help="write the page of what was run so far, and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print members, steps and time, and run nothing")
    return parser


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    study = _study(options, overrides)
    earlier = read_earlier(options.earlier, _settings(options))  # what cannot be read is said before anything runs
    arms, absent = build_arms(study)
    if options.dry_run:
        _print_plan(study, list(arms.values()), absent)
        return
    study.folder.mkdir(parents=True, exist_ok=True)
    with owning(RunDirectory(study.folder)):
        if not options.report:
            absent += _run_missing(study, arms, lambda absent: _write(study, options, absent, earlier), absent)
        rows = _write(study, options, absent, earlier)
    print(markdown(rows))
    print(f"\n{verdict_counts(rows)}. Page: {study.folder / 'results' / 'reproduction.html'}")


def _run_missing(
    study: Study, arms: dict[str, Arms], write: Callable[[list[Row]], object], absent: list[Row]
) -> list[Row]:
    """Prepares, checks and declares the claims, then runs what is missing of each; `write` draws the page after each.

    Returns:
        The rows of claims for which the preparation failed.
    """
    require_unchanged(study.folder, declarations(study, arms))
    failed = prepare_all(study, arms)
    ready = {name: one for name, one in arms.items() if one.claim not in [row.claim for row in failed]}
    checked = check_all(study, ready.values())
    declare(study.folder, declarations(study, ready))
    for name, one in ready.items():
        measure(study, one, checked.get(name), lambda line: print(line, flush=True))
        write([*absent, *failed])
    return failed


def _study(options: argparse.Namespace, overrides: Sequence[str]) -> Study:
    unknown = [name for name in options.claims if name not in CLAIMS]
    if unknown:
        raise SailError(f"There is no claim {unknown[0]!r}; they are {', '.join(CLAIMS)}.")
    if overrides and not options.config:
        raise SailError(f"--config.{overrides[0]} changes a config, and there is no --config: name yours.")
    return Study(
        claims=tuple(CLAIMS[name] for name in options.claims or CLAIMS),
        folder=options.workdir.absolute(),
        seeds=options.seeds,
        scale=options.scale,
        config=config_lib.load(options.config, overrides) if options.config else None,
        jobs=options.jobs,
        request=job_request(options.slurm),
    )


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """Returns what all claims of a page have in common."""
    return {"base": options.config or "generated worlds", "scale": options.scale}


def _write(
    study: Study, options: argparse.Namespace, absent: Sequence[Row], elsewhere: Mapping[str, Earlier]
) -> list[Row]:
    """Writes the page of all claims, run here, in another folder or not yet; returns their rows."""
    folder = study.folder / "results"
    folder.mkdir(exist_ok=True)
    settings = _settings(options)
    here = declared(study.folder)
    earlier = {name: one for name, one in elsewhere.items() if name not in here}
    origins = {name: {"declared": entry["digest"], "machine": machine()} for name, entry in here.items()}
    known = {row.claim.name: row for row in absent} | {name: one.row for name, one in earlier.items()}
    rows = with_holm([known.get(name) or row_of(study, claim) for name, claim in CLAIMS.items()])
    write_page(folder, rows, origins | {name: one.origin for name, one in earlier.items()}, settings)
    return rows


def _print_plan(study: Study, arms: Sequence[Arms], rows: Sequence[Row]) -> None:
    plan = Plan(study, arms)
    for name, members, steps, seconds in plan.lines:
        time = f", {seconds / 60:.0f} min of a core" if study.sizes.seconds_per_pair and study.config is None else ""
        print(f"{name}: {members} members, {steps} steps{time}")
    for row in rows:
        print(f"{row.claim.name}: {row.verdict}: {row.reason}")
    members, steps = (sum(line[place] for line in plan.lines) for place in (1, 2))
    print(f"In all {members} members and {steps} steps.", end=" ")
    if study.sizes.seconds_per_pair and study.config is None:
        hours = plan.seconds / 3600
        print(f"About {hours:.1f} hours of a core, half of that on two; worlds and first models come on top.")
    else:
        print("How long a step takes here was not measured.")


if __name__ == "__main__":
    main()
