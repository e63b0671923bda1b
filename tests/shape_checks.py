"""Which annotations are checked while tests run: those of jaxtyping, which tell shapes and types of arrays."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

ROOMS = ("models", "objectives", "vectors")


def install():
    """Has the functions of the rooms checked on every call; before anything of them is imported."""
    install_import_hook([f"sail_jax.{room}" for room in ROOMS], f"{__name__}.checked")


def checked(function: Callable) -> Callable:
    """Checks the arrays that a function takes and returns; left as it is, as most are, where it says nothing of any."""
    hints = {name: hint if _tells_shape(hint) else Any for name, hint in function.__annotations__.items()}
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    return beartype(function)


def _tells_shape(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_tells_shape, get_args(hint)))
