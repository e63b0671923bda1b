"""SAIL-Embedding in JAX: one vector per item of video, text and sound (arXiv 2510.12709)."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sail_jax.embedding.embedder import Embedder, load
    from sail_jax.items import Item

__all__ = ["Embedder", "Item", "load"]
# Imported on first use (PEP 562): the model takes seconds to import, and the help of the command line does not need it.
_HOMES = {"Embedder": "sail_jax.embedding.embedder", "Item": "sail_jax.items", "load": "sail_jax.embedding.embedder"}

# On import, transformers warns that PyTorch is missing, which nothing here needs. Its other messages pass.
logging.getLogger("transformers").addFilter(lambda record: not record.getMessage().startswith("PyTorch was not found"))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
