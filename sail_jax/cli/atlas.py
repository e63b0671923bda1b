"""The verb `atlas`: a map of a whole set of embeddings, as a file and in the browser."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from sail_jax.buckets import place
from sail_jax.cli.common import config_of_run, console, declare
from sail_jax.cli.search_flags import store_or_none
from sail_jax.config.search import PROJECTIONS
from sail_jax.errors import SailError


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "atlas",
        run,
        "write a map of embeddings, of millions too, as Parquet with texts, labels and thumbnails, and open it with "
        "Embedding Atlas (the extra `atlas`) on this machine; Ctrl-C ends it",
        "--workdir runs/quickstart --embeddings embeddings/quickstart",
        workdir="run directory, whose config names the items",
        config="of run",
        kept="a map that was written before is as it was; run the same command again.",
    )
    sub.add_argument("--embeddings", required=True, type=place, help="folder that `embed` wrote")
    sub.add_argument("--output", type=Path, help="Parquet file that is written (atlas.parquet in --workdir)")
    sub.add_argument(
        "--projection",
        choices=PROJECTIONS,
        default="tsne",
        help="places a sample, of 5,000 by tsne or of 20,000 by umap, which needs the extra `atlas`; all other points "
        "lie between the nearest of the sample (tsne)",
    )
    sub.add_argument("--thumbnail", type=int, default=96, help="side of the thumbnails in pixels, 0 for none (96)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the samples and of the projection (0)")
    sub.add_argument(
        "--projector",
        type=Path,
        metavar="FOLDER",
        help="write a sample of 10,000 points for TensorBoard's projector, too",
    )
    sub.add_argument("--no-serve", action="store_true", help="write the files and end")
    sub.add_argument("--port", type=int, default=8018, help="port of 127.0.0.1; 0 for any free port (8018)")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the files, and serves the map until Ctrl-C."""
    from sail_jax.atlas.points import AtlasSettings, Points
    from sail_jax.atlas.projector import Projector
    from sail_jax.atlas.table import write_table
    from sail_jax.atlas.viewer import INSTALL, flags_of, free_port, is_installed
    from sail_jax.vectors.embedding_set import EmbeddingSet

    config = config_of_run(options, overrides)
    output = (options.output or options.workdir / "atlas.parquet").absolute()
    if output.suffix != ".parquet":
        raise SailError(f"--output is {output}; a map is a Parquet file: name it {output.with_suffix('.parquet')}.")
    settings = AtlasSettings(options.projection, options.thumbnail, options.seed)
    serves = is_installed() and not options.no_serve
    if serves:
        free_port(options.port)  # a port that is taken is told before the work
    embeddings = EmbeddingSet(options.embeddings)
    projector = options.projector and Projector(options.projector, len(embeddings), options.seed)
    points = Points(embeddings, store_or_none(config), settings)
    report = write_table(points, len(embeddings), output, projector)
    console.print(f"Atlas: {report}: {output}", highlight=False)
    if projector:
        console.print(f"Projector: {projector.write()}: {options.projector.absolute()}", highlight=False)
        console.print(f"Next: tensorboard --logdir {shlex.quote(str(options.projector))}", highlight=False)
    flags = flags_of(output, report)
    if serves:
        _serve(flags, free_port(options.port))
    else:
        install = "" if is_installed() else f"{INSTALL} && "
        console.print(f"Next: {install}embedding-atlas {shlex.join(flags)}", highlight=False)


def _serve(flags: list[str], port: int) -> None:
    """Serves a file that is written until Ctrl-C."""
    from sail_jax.atlas.viewer import Viewer

    console.print("Embedding Atlas reads it.")
    try:
        with Viewer(flags, port) as viewer:
            console.print(f"It is at {viewer.url} (only this machine can open it); Ctrl-C ends it.")
            console.print("Next: open this address in a browser that has WebGPU, such as Chrome.")
            viewer.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
