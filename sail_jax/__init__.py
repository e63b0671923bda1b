"""SAIL-Embedding in JAX: one vector for any subset of video frames, text fields and sound (arXiv 2510.12709)."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sail_jax.embedding.embedder import Embedder, load
    from sail_jax.items import Item

__all__ = ["Embedder", "Item", "load"]
# Imported when they are first asked for (PEP 562): the model behind them takes seconds to import, the command line's help needs none.
_HOMES = {"Embedder": "sail_jax.embedding.embedder", "Item": "sail_jax.items", "load": "sail_jax.embedding.embedder"}

# transformers says on its import that PyTorch is missing, which nothing here needs; its other messages pass.
logging.getLogger("transformers").addFilter(lambda record: not record.getMessage().startswith("PyTorch was not found"))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
