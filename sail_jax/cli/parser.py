"""The parser of the command line, which suggests the nearest verb, flag or setting for a typo."""

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail_jax.buckets import require_local
from sail_jax.config.schema import nearest
from sail_jax.errors import SailError

_SETTING = "--config."
_EXAMPLE = "example: "  # how the last words of a verb's help begin
_DOTTED = re.compile(r"--[A-Za-z_]\w*(\.\w+)+(=|$)")


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the words of a command into flags and `--config.a.b=value` settings.

    Returns:
        The other words, and the settings without `--config.`: "a.b=value".

    Raises:
        SailError: a setting without `config.` or without `=`; the message says what to write.
    """
    others, settings = [], []
    for number, word in enumerate(words):
        value = next(
            (following for following in words[number + 1 : number + 2] if not following.startswith("--")), "VALUE"
        )
        if _DOTTED.match(word) and not word.startswith(_SETTING):
            setting = word.removeprefix("--")
            raise SailError(
                f"Settings begin with --config; write {_SETTING}{setting if '=' in word else f'{setting}={value}'}."
            )
        if not word.startswith(_SETTING):
            others.append(word)
        elif "=" in word:
            settings.append(word.removeprefix(_SETTING))
        else:
            raise SailError(f"{word} has no value; write it after an equals sign: {word}={value}.")
    return others, settings


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps help between words only, never within a flag or a name, and leaves examples on one line to be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        words, mark, example = text.partition(_EXAMPLE)
        lines = [*self._split_lines(words, width - len(indent)), *([mark + example] if mark else [])]
        return "\n".join(indent + line for line in lines)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises SailError for a mistyped verb or flag, with the nearest valid ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)
        self._verbs: dict[str, argparse.ArgumentParser] | None = None

    def add_subparsers(self, **options: Any) -> Any:
        """Adds subparsers as argparse does, and keeps their names for suggestions."""
        action = super().add_subparsers(**options)
        self._verbs = action.choices
        return action

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses words as argparse does.

        Raises:
            SailError: an unknown verb or flag; the message names the nearest valid ones. Or a path is an address.
        """
        for word in args or ():
            if self._verbs is not None and not word.startswith("-"):
                if word not in self._verbs:
                    raise SailError(f"There is no verb {word!r}. Did you mean {nearest(word, self._verbs)}?")
                break  # the verb's own parser checks the rest
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions and not flag.startswith(_SETTING):
                if self._verbs is not None:
                    raise SailError(f"The verb comes first: {self.prog} VERB {flag} ...")
                # Without the dashes, which make any two flags alike.
                flags = [name[2:] for name in self._option_string_actions if name.startswith("--")]
                near = nearest(flag[2:], flags).replace(" or ", " or --")
                raise SailError(f"{self.prog} has no flag {flag}. Did you mean --{near}?")
        options, rest = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            for path in value if isinstance(value, list) else (value,):
                if isinstance(path, Path):
                    require_local(path, f"--{name.replace('_', '-')}")
        return options, rest
