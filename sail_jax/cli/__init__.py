"""The command line: `sail-jax VERB --config configs/X.py --config.a.b=value --workdir DIR`.

There is one module per verb: `add_verb` declares the verb, `run` runs it. `run` imports the rooms that it needs itself,
so that help and completion are fast, and a verb imports only what it uses.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sail_jax.cli import (
    atlas,
    balance,
    config,
    describe,
    embed,
    evaluate,
    export,
    fit,
    index,
    ingest,
    init,
    inspect,
    join_vectors,
    materialize,
    mine,
    on_cpu,
    pairs,
    prompts,
    quickstart,
    report,
    search,
    semantic_ids,
    sequences,
    serve,
    sweep,
    train,
    world,
)
from sail_jax.cli.common import NOTHING_KEPT
from sail_jax.cli.disk import disk_problem
from sail_jax.cli.distributed import named
from sail_jax.cli.no_device import missing_devices
from sail_jax.cli.parser import Parser, split_settings
from sail_jax.cli.signals import Signals
from sail_jax.errors import DiskError, SailError, Stopped
from sail_jax.terminal import Terminal

# In the order of the help.
_VERBS = (
    *(quickstart, init, fit, world, ingest, join_vectors, materialize, train, evaluate, report, sweep),
    *(mine, balance, prompts, pairs, sequences),
    *(export, inspect, describe, config),
    *(embed, index, search, serve, atlas, semantic_ids),
)


def main(argv: Sequence[str] | None = None, program: str = "python -m sail_jax") -> int:
    """Runs a verb; prints errors written for the user without a traceback; returns the exit status.

    Args:
        argv: the words after the program; by default those of the process.
        program: how the program was called, for help and examples.
    """
    parser = _parser(program)
    if "_ARGCOMPLETE" in os.environ:
        from sail_jax.cli.completion import complete

        complete(parser)  # prints the completions, then ends the process
    options = argparse.Namespace(kept=NOTHING_KEPT)
    try:
        with Signals(lambda stopped: os._exit(_stop(stopped, options.kept))):
            words, overrides = split_settings(list(sys.argv[1:] if argv is None else argv))
            parser.parse_args(words, options)
            options.overrides = overrides
            _keep_compiled()
            on_cpu.tune()
            options.run(options, overrides)
    except SailError as error:
        return _fail(str(error), error.status)
    except Exception as error:
        folder = getattr(options, "output", None) or getattr(options, "workdir", "")
        if problem := disk_problem(error, folder):
            return _fail(f"{problem}. Make room, or let it be written: {options.kept}", DiskError.status)
        if isinstance(error, OSError) and error.strerror:  # that of Arrow has the path in its text
            where = "" if error.filename is None else f"{error.filename}: "
            return _fail(f"{where}{error.strerror}. Check that the path is right and can be written.", 2)
        if _is_of_a_size(error):
            reason = str(error).partition("\n")[0][:200] or "out of memory"
            return _fail(f"A size is too large for this machine ({reason}). Lower those of model and inputs.", 2)
        if isinstance(error, RuntimeError | AssertionError) and (message := missing_devices()):
            return _fail(message, 2)
        raise
    except KeyboardInterrupt as error:
        return _stop(error if isinstance(error, Stopped) else Stopped(signal.SIGINT), options.kept)
    return 0


def _is_of_a_size(error: Exception) -> bool:
    """Returns whether an error is of a size in the settings that no machine has room for, or no index reaches."""
    beyond = isinstance(error, OverflowError) and re.search("too large to convert|index-sized integer", str(error))
    return isinstance(error, MemoryError) or bool(beyond)


def _keep_compiled() -> None:
    """Makes JAX cache compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR is set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # JAX reads the variable on import, and no verb has imported JAX yet.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "sail_jax" / "compiled"))


def _fail(message: str, status: int) -> int:
    """Prints an error for the user; returns the exit status."""
    return _say(f"error{named()}: {message}", status)


def _stop(stopped: Stopped, kept: str) -> int:
    """Prints what a signal ended and what is kept, by default that of the verb; returns the exit status."""
    return _say(f"stopped{named()} by {stopped.number.name}: {stopped.kept or kept}", stopped.status)


def _say(line: str, status: int) -> int:
    Terminal(stderr=True).print(line, highlight=False)
    return status


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="Omni-modal embedding models: ingest, train, evaluate, export.",
        epilog="Change any setting with --config.a.b=value (quote lists: --config.eval.ks='(1, 10)'); "
        "`describe --settings` lists all settings. Defaults of flags are in parentheses. "
        "For completion of verbs, flags and settings with Tab, put this line "
        'into ~/.bashrc or ~/.zshrc: eval "$(register-python-argcomplete sail-jax)". '
        "example: %(prog)s quickstart --workdir runs/quickstart",
    )
    parser.set_defaults(program=program)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_verb(verbs)
    return parser
