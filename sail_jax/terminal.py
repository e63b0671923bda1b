"""Prints to the terminal what a user wrote, as it is: brackets and colons of a path are no markup."""

from typing import Any

from rich.console import Console

from sail_jax.buckets import with_addresses


class Terminal(Console):
    """Rich's console for plain text, with addresses of buckets instead of the paths of their mirrors.

    Neither texts nor cells of tables are read as markup or names of emoji; `style` colours a whole line.

    Args:
        options: further options of rich's, such as `stderr`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does."""
        super().print(*(with_addresses(each) if isinstance(each, str) else each for each in objects), **options)


# That of the process: what is printed while a bar is shown stands above it.
console = Terminal()
