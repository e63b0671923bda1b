"""Runs the program of a sweep whose members do something else than train."""

from pathlib import Path

from sail_jax import config as config_lib
from sail_jax.errors import SailError
from sail_jax.files import commit_json
from sail_jax.sweeps.folder import SweepFolder

_FUNCTION = "member"


def require_program(program: str) -> None:
    """Raises SailError if there is no such file."""
    if not Path(program).is_file():
        raise SailError(
            f"Members of the sweep run {program}, which is not there: name a Python file with "
            f"`def {_FUNCTION}(config, values, folder)`."
        )


def run_program(program: str, folder: SweepFolder, name: str) -> None:
    """Runs the program of a sweep for a member, and writes the figures that it returns to metrics.json.

    Raises:
        SailError: it fails, or returns no figures.
    """
    member = next(record.member for record in folder.read().members if record.member.name == name)
    config, run = config_lib.load(folder.config(name)), folder.run(name)
    run.path.mkdir(parents=True, exist_ok=True)
    figures = config_lib.call_in_file(Path(program), _FUNCTION, config, member.axes, run.path)
    if not isinstance(figures, dict) or not figures:
        raise SailError(f"{program} has no {_FUNCTION}(config, values, folder) that returns {{'TASK/METRIC': figure}}.")
    commit_json(run.metrics, {"trained": figures})
