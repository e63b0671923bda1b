"""The flags of a second model that `serve` shows beside the first one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sail_jax.buckets import place, with_addresses
from sail_jax.cli.search_flags import store_or_none
from sail_jax.config import Config
from sail_jax.errors import SailError

if TYPE_CHECKING:
    from sail_jax.search.beside import Beside
    from sail_jax.vectors.embedding_set import EmbeddingSet


class SecondModel(NamedTuple):
    """The config of the second model's run, and what it embedded."""

    config: Config
    embeddings: "EmbeddingSet"


def add_beside_flags(sub: argparse.ArgumentParser) -> None:
    """Adds the flags of the second model."""
    group = sub.add_argument_group(
        "two models side by side",
        "example: --workdir runs/new --embeddings embeddings/new --beside-workdir runs/old --beside-embeddings "
        "embeddings/old",
    )
    group.add_argument("--beside-workdir", type=place, help="run directory of a second model, asked the same queries")
    group.add_argument("--beside-embeddings", type=place, help="folder that it embedded; its search is exact")
    group.add_argument("--beside-step", type=int, help="step of its checkpoint (the newest one that is whole)")


def second_model(options: argparse.Namespace, overrides: list[str]) -> SecondModel | None:
    """Opens what the flags of the second model name, but the model; None if there are none.

    Raises:
        SailError: a flag is missing, or a folder has no run or no embeddings.
    """
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.vectors.embedding_set import EmbeddingSet

    workdir, embeddings = options.beside_workdir, options.beside_embeddings
    if workdir is None and embeddings is None and options.beside_step is None:
        return None
    if workdir is None or embeddings is None:
        raise SailError("A second model needs its run and what it embedded: --beside-workdir and --beside-embeddings.")
    return SecondModel(RunDirectory(workdir).load_config(overrides=overrides), EmbeddingSet(embeddings))


def open_beside(options: argparse.Namespace, second: SecondModel) -> "Beside":
    """Loads the second model.

    Raises:
        SailError: its checkpoint cannot be read, or the embeddings are not its own.
    """
    from sail_jax.embedding import embedder as embedder_lib
    from sail_jax.search.beside import Beside
    from sail_jax.search.searcher import Searcher

    embedder = embedder_lib.load(options.beside_workdir, second.config, step=options.beside_step)
    searcher = Searcher(embedder, second.embeddings, text_instruction=options.text_instruction)
    return Beside(titles(options)[1], searcher, store_or_none(second.config))


def titles(options: argparse.Namespace) -> tuple[str, str]:
    """Returns what the page calls the two models: the names of their runs, or more where these are alike."""
    first, second = (Path(path or "").absolute() for path in (options.workdir, options.beside_workdir))
    if options.beside_workdir is None or first.name != second.name:
        return first.name, second.name
    if first != second:
        return with_addresses(first), with_addresses(second)
    searched = (options.embeddings or options.index, options.beside_embeddings)
    return tuple(f"{first.name}: {with_addresses(path)}" for path in searched)
