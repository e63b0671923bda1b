"""Shell completion by argcomplete: verbs, flags and their choices, files, and settings."""

import argparse

import argcomplete

from sail_jax.config import Config
from sail_jax.config.schema import meanings


class _Finder(argcomplete.CompletionFinder):
    """Completes settings too, which are not flags of the parser: `--config.data.batch_size=`."""

    def collect_completions(
        self, active_parsers: list[argparse.ArgumentParser], parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        found = super().collect_completions(active_parsers, parsed_args, cword_prefix)
        if not cword_prefix.startswith("--config."):
            return found
        keys = [f"--{key}=" for key, *_ in meanings(Config)]
        return found + [key for key in keys if key.startswith(cword_prefix)]


def complete(parser: argparse.ArgumentParser) -> None:
    """Prints the completions of the line that the shell passes in the environment; then ends the process."""
    _Finder()(parser)
