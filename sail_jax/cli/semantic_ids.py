"""The verb `semantic-ids` and its actions `fit`, `assign` and `lookup`."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.buckets import place
from sail_jax.cli.common import console, declare, one_line, print_next, print_wide, without_config
from sail_jax.config.semantic_ids import ANCHORS, METHODS, SAMPLES, VQSettings
from sail_jax.errors import SailError


def add_verb(verbs: Any) -> None:
    """Declares the verb and its actions."""
    meaning = "turn embeddings into semantic IDs, short sequences of discrete codes, and look up the items of an ID"
    group = verbs.add_parser(
        "semantic-ids",
        help=meaning,
        description=meaning,
        epilog="example: %(prog)s fit --embeddings embeddings/items --output sids --levels 256,256,256",
    )
    actions = group.add_subparsers(required=True, metavar="ACTION")
    _add_fit(actions)
    _add_assign(actions)
    _add_lookup(actions)


def _add_fit(actions: Any) -> None:
    sub = declare(
        actions,
        "fit",
        _fit_semantic_ids,
        "fit codebooks on a sample of a folder of embeddings",
        "--embeddings embeddings/items --output sids --levels 256,256,256 --method kmeans",
        workdir="",
        config="",
        kept="finished codebooks are kept, and the same command goes on.",
    )
    sub.add_argument("--embeddings", required=True, type=place, help="folder of embeddings")
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument(
        "--levels",
        required=True,
        action="append",
        help="sizes of the codebooks, such as 256,256,256; each prefix of an ID is a coarser ID. Repeat the flag to "
        "fit several sets of codebooks, each in its own folder of --output, such as 256-256-256",
    )
    sub.add_argument(
        "--method",
        choices=METHODS,
        default="kmeans",
        help="residual k-means by faiss, or on the accelerators, or a learned residual VQ (kmeans)",
    )
    sub.add_argument("--seed", type=_whole, default=0, help="seed of the sample and the fit (0)")
    sub.add_argument(
        "--samples",
        type=_whole,
        default=SAMPLES,
        help=f"maximum number of embeddings to fit on; they are held in memory ({SAMPLES})",
    )
    _add_anchors(sub)
    defaults = VQSettings()
    sub.add_argument("--steps", type=_whole, help=f"with --method vq: number of updates ({defaults.steps})")
    sub.add_argument("--batch", type=_whole, help=f"with --method vq: embeddings per update ({defaults.batch})")
    sub.add_argument(
        "--latent",
        type=_whole,
        help="with --method vq: width between a learned encoder and decoder; 0 quantises the embeddings themselves (0)",
    )


def _add_assign(actions: Any) -> None:
    sub = declare(
        actions,
        "assign",
        _assign_semantic_ids,
        "assign semantic IDs to the items of a folder of embeddings, with fitted codebooks",
        "--codebooks sids --embeddings embeddings/new --output sids/new.parquet --unique",
        workdir="",
        config="",
    )
    sub.add_argument("--codebooks", required=True, type=Path, help="folder that `semantic-ids fit` wrote")
    sub.add_argument("--embeddings", required=True, type=place, help="folder of embeddings of the same model")
    sub.add_argument(
        "--output",
        required=True,
        type=Path,
        help="Parquet table that is written; figures and a plot are written next to it",
    )
    sub.add_argument(
        "--unique", action="store_true", help="add a suffix that numbers the items with equal codes from 0, in order"
    )
    sub.add_argument("--seed", type=_whole, default=0, help="seed of the draw of anchors (0)")
    _add_anchors(sub)


def _add_lookup(actions: Any) -> None:
    sub = declare(
        actions,
        "lookup",
        _look_up_semantic_id,
        "list the items of a semantic ID, or of all IDs that begin with it",
        "--table sids/new.parquet --id 12-3",
        workdir="",
        config="",
    )
    sub.add_argument("--table", required=True, type=Path, help="table that `semantic-ids assign` wrote")
    sub.add_argument("--id", required=True, help="semantic ID such as 12-3-77, or a prefix such as 12-3")
    sub.add_argument("--limit", type=_whole, default=20, help="maximum number of items to list; all are counted (20)")


def _add_anchors(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--anchors",
        type=_whole,
        default=ANCHORS,
        help=f"items drawn to measure whether neighbours share their IDs; 0 for no such figure ({ANCHORS})",
    )


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _fit_semantic_ids(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.semantic_ids.codebooks import fit_folder, parse_levels
    from sail_jax.semantic_ids.report import figures_table
    from sail_jax.vectors.embedding_set import EmbeddingSet

    without_config("semantic-ids", overrides)
    sizes = [parse_levels(text) for text in options.levels]
    if len(sizes) == 1:
        outputs = {options.output: sizes[0]}
    else:
        outputs = {options.output / "-".join(map(str, levels)): levels for levels in sizes}
    given = {name: getattr(options, name) for name in ("steps", "batch", "latent")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.method != "vq":
        raise SailError(f"--{next(iter(given))} belongs to --method vq; leave it out, or choose that method.")
    figures = fit_folder(
        EmbeddingSet(options.embeddings),
        outputs,
        method=options.method,
        seed=options.seed,
        samples=options.samples,
        anchors=options.anchors,
        vq=VQSettings(**given),
    )
    for output, of_output in figures.items():
        print_wide(figures_table(of_output))
        console.print(
            f"Codebooks: {output.absolute()}, with figures (of the sample) in semantic_ids.json and utilisation.png"
        )
        given = ("--codebooks", output, "--embeddings", options.embeddings, "--output", output / "ids.parquet")
        print_next(options, "semantic-ids", "assign", *given)


def _assign_semantic_ids(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.semantic_ids.codebooks import SemanticIds
    from sail_jax.semantic_ids.report import figures_table
    from sail_jax.semantic_ids.table import write_table
    from sail_jax.vectors.embedding_set import EmbeddingSet

    without_config("semantic-ids", overrides)
    figures = write_table(
        SemanticIds.load(options.codebooks),
        EmbeddingSet(options.embeddings),
        options.output,
        unique=options.unique,
        seed=options.seed,
        anchors=options.anchors,
    )
    print_wide(figures_table(figures))
    if figures["left_out"]:
        console.print(
            f"{figures['left_out']:,} items have no usable vector and got no ID, such as "
            f"{figures['left_out_ids'][0]!r}."
        )
    output = options.output.absolute()
    console.print(
        f"IDs: {output}; figures: {output.with_suffix('.json')}; use of the codes: {output.with_suffix('.png')}"
    )
    print_next(options, "semantic-ids", "lookup", "--table", options.output, "--id", "12")


def _look_up_semantic_id(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.semantic_ids.table import SemanticIdTable

    without_config("semantic-ids", overrides)
    matches = SemanticIdTable(options.table).find(options.id, options.limit)
    for item, semantic_id in matches.items:
        print(f"{semantic_id}\t{one_line(item)}")
    console.print(matches.summary(options.id), highlight=False)
    of_run = ("--workdir", "RUN", "--embeddings", "EMBEDDINGS")
    print_next(options, "serve", *of_run, "--semantic-ids", options.table)
