"""The command line: `python -m sail_jax VERB --config configs/X.py --config.a.b=value --workdir DIR`."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sail_jax import config as config_lib
from sail_jax import embedder as embedder_lib
from sail_jax.checkpoint import RunDirectory
from sail_jax.config import Config
from sail_jax.convert.export import export
from sail_jax.convert.from_hf import inspect_checkpoint
from sail_jax.convert.sources import find_checkpoint
from sail_jax.convert.to_torch import DTYPES
from sail_jax.curation.balancing import balance
from sail_jax.curation.hard_negatives import mine_dataset
from sail_jax.data.ingest import ingest
from sail_jax.data.pipeline import open_store
from sail_jax.data.preview import previews
from sail_jax.data.store import ItemStore
from sail_jax.data.synthetic import make_world
from sail_jax.data.training_set import materialize
from sail_jax.deploy import semantic_ids as semantic_ids_lib
from sail_jax.deploy.embed import EmbedOptions, embed
from sail_jax.deploy.embedding_set import DTYPES as VECTOR_DTYPES
from sail_jax.deploy.embedding_set import EmbeddingSet
from sail_jax.deploy.faiss_index import KINDS, FaissIndex, IndexSettings, build_index
from sail_jax.deploy.item_source import open_source
from sail_jax.deploy.residual_vq import VQSettings
from sail_jax.deploy.search import FILE_KINDS, Hit, QueryFile, Searcher, Shortlist, caption, query_item
from sail_jax.deploy.semantic_id_report import figures_table
from sail_jax.deploy.semantic_id_table import SemanticIdTable, write_table
from sail_jax.deploy.semantic_ids import SemanticIds
from sail_jax.deploy.web import SearchPage, SearchServer
from sail_jax.errors import BadRecordError, SailError
from sail_jax.evaluation.report import png_folder, write_report
from sail_jax.evaluation.report_data import read_runs, write_report_data
from sail_jax.evaluation.suite import (
    Result,
    evaluated_step,
    evaluation_record,
    headline,
    metrics_tree,
    run_suite,
    shown_results,
)
from sail_jax.evaluation.summary import gather
from sail_jax.items import MODALITIES, TEXT_FIELDS
from sail_jax.models.describe import parameter_table
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.schema import meanings
from sail_jax.training.ahead import compile_ahead
from sail_jax.training.loop import train

INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended
_CAPTION = 160  # characters of a caption in a table
console = Console(soft_wrap=True)
_QUICKSTART_CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status. Errors meant for the user are printed without a traceback."""
    arguments, overrides = _split(list(sys.argv[1:] if argv is None else argv))
    options = _parser().parse_args(arguments)
    _keep_compiled()
    try:
        options.run(options, overrides)
    except SailError as error:
        return _fail(str(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(
            f"{error.filename}: {error.strerror}. Check that the path is right, can be written, and has room.", 2
        )
    except KeyboardInterrupt:
        return _fail(
            "interrupted; the same command goes on after the last shard or checkpoint that was saved.", INTERRUPTED
        )
    return 0


def _keep_compiled() -> None:
    """Keeps compiled programs for the next process, in the user's cache, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "sail_jax" / "compiled"))


def _fail(message: str, status: int) -> int:
    """Prints an error for the user; returns the exit status."""
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {message}")
    return status


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.a.b=value` words from the rest."""
    overrides = [word.removeprefix("--config.") for word in arguments if word.startswith("--config.")]
    return [word for word in arguments if not word.startswith("--config.")], overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sail_jax",
        description="Omni-modal embedding models: ingest, train, evaluate, export.",
        epilog="Any setting can be changed with --config.a.b=value (quote lists: --config.eval.ks='(1, 10)'); `describe --settings` "
        "lists them all. example: python -m sail_jax quickstart --workdir runs/quickstart",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_run_verbs(verbs)
    _add_curation_verbs(verbs)
    _add_weight_verbs(verbs)
    _add_deploy_verbs(verbs)
    _add_search_verbs(verbs)
    _add_semantic_id_verbs(verbs)
    return parser


def _add_run_verbs(verbs: Any) -> None:
    start = _verb(
        verbs,
        "quickstart",
        _quickstart,
        "generate a small world, train a tiny model on it, evaluate it, write a report",
        "--workdir runs/quickstart",
        workdir="",
        config=False,
    )
    start.add_argument("--workdir", type=Path, default=Path("runs/quickstart"), help="where everything is written")
    start.set_defaults(config=_QUICKSTART_CONFIG)
    sub = _verb(
        verbs,
        "ingest",
        _ingest,
        "turn a raw export (tables and media files, or a TFDS set) into an item store and tables",
        "--config configs/glyphs.py --source EXPORT --workdir data/glyphs",
        workdir="folder that is written; give it to `train` as --config.data.dir",
    )
    sub.add_argument("--source", type=Path, default=Path(), help="folder of the raw export")
    sub = _verb(
        verbs,
        "materialize",
        _materialize,
        "write a training set's joined, shuffled records as shards that are read in order, for object storage",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --dataset i2i --output data/glyphs/materialized/i2i",
        workdir="",
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument(
        "--epochs", type=int, default=1, help="times the table is written, each in an order of its own (1)"
    )
    sub = _verb(
        verbs,
        "train",
        _train,
        "train a model, or continue the run in --workdir where it stopped",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --workdir runs/glyphs",
        workdir="run directory",
    )
    sub.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, started alike on every host; finds the others by the environment of TPU pods, "
        "Slurm, Open MPI or Kubernetes",
    )
    sub = _verb(
        verbs,
        "evaluate",
        _evaluate,
        "evaluate a trained run, or a folder of embeddings, and write metrics.json, evaluation.json and report.html",
        "--workdir runs/glyphs",
        workdir="run directory; where the figures are written",
        config=False,
    )
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")
    sub.add_argument(
        "--embeddings",
        type=Path,
        help="folder that `embed` wrote, evaluated in place of a checkpoint: FOLDER/TASK/queries and FOLDER/TASK/corpus, or "
        "FOLDER for all items; --config names the tasks, and --workdir need not be a run",
    )
    sub = _verb(
        verbs,
        "report",
        _report,
        "draw the report of an evaluated run again, or compare several runs in one page; needs neither model nor items",
        "--workdir runs/glyphs --workdir runs/glyphs_large --output report.html",
        workdir="",
        config=False,
    )
    sub.add_argument(
        "--workdir", required=True, type=Path, action="append", help="run directory; name several to compare them"
    )
    sub.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help="page that is written, with its charts as PNGs in NAME_files beside it (report.html)",
    )


def _add_curation_verbs(verbs: Any) -> None:
    sub = _verb(
        verbs,
        "mine",
        _mine,
        "mine the hard negatives of a training set with a trained run, and write a table that `train` reads",
        "--workdir runs/glyphs --dataset i2i --output data/glyphs/negatives/i2i.parquet",
        workdir="run directory",
        config=False,
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument(
        "--output", required=True, type=Path, help="table that is written, with figures and a plot beside it"
    )
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")
    sub.add_argument(
        "--query-embeddings",
        type=Path,
        help="Parquet of `id` and `vector` (or a folder of them) to read, not to compute",
    )
    sub.add_argument("--target-embeddings", type=Path, help="likewise, of the targets")
    sub = _verb(
        verbs,
        "balance",
        _balance,
        "weigh the training sets by how near they lie to the evaluation tasks, in the eyes of a trained run",
        "--workdir runs/glyphs --output data/glyphs/weights.json",
        workdir="run directory of an early model",
        config=False,
    )
    sub.add_argument(
        "--output", required=True, type=Path, help="JSON for config.data.weights; a heat map lies beside it"
    )
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")
    sub = _verb(
        verbs,
        "prompts",
        _prompts,
        "show what the model reads of each data set and task: the filled prompt of both sides",
        "--config configs/glyphs.py --config.data.dir=data/glyphs",
        workdir="",
    )
    sub.add_argument("--row", type=int, default=0, help="row of each table that serves as the example (0)")


def _add_search_verbs(verbs: Any) -> None:
    sub = _verb(
        verbs,
        "index",
        _index,
        "build a faiss index file of embeddings, part by part",
        "--embeddings embeddings/glyphs --output indexes/glyphs.faiss --kind hnsw",
        workdir="",
        config=False,
    )
    sub.add_argument("--embeddings", required=True, type=Path, help="folder that `embed` wrote")
    sub.add_argument("--output", required=True, type=Path, help="index file; its ids and a JSON of it lie beside it")
    sub.add_argument("--kind", choices=KINDS, default="flat", help="exact, compressed, or a graph (flat)")
    sub.add_argument("--dims", type=int, default=0, help="index the first dimensions only (all)")
    sub.add_argument("--nlist", type=int, default=0, help="ivfpq: inverted lists (4 sqrt(N), at most N / 39)")
    sub.add_argument("--m", type=int, default=0, help="ivfpq: bytes of a vector, a divisor of the dims (dims / 4)")
    sub.add_argument("--hnsw-m", type=int, default=0, help="hnsw: neighbours of a vector (32)")
    sub.add_argument("--ef-construction", type=int, default=0, help="hnsw: candidates while building (200)")
    sub.add_argument("--seed", type=int, default=0, help="ivfpq: seed of its training (0)")
    sub = _verb(
        verbs,
        "search",
        _search,
        "print the items nearest to a text, an image, a sound, a video, any mixture of them, or to an item",
        "--workdir runs/glyphs --embeddings embeddings/glyphs --text 'a smiling cat' --image cat.jpg",
        workdir="run directory of the model that embedded the items",
        config=False,
    )
    _add_searched(sub)
    sub.add_argument("--text", default="", help="free text")
    for kind in FILE_KINDS:
        sub.add_argument(f"--{kind}", type=Path, action="append", default=[], help=f"{kind} file")
    sub.add_argument("--item", default="", help="id of an item that is searched: what is like it, itself left out")
    sub.add_argument("-k", type=int, default=10, help="items that are printed (10)")
    sub = _verb(
        verbs,
        "serve",
        _serve,
        "show a page on this machine where a query is typed or a file dropped, and the items are seen; Ctrl-C ends it",
        "--workdir runs/glyphs --embeddings embeddings/glyphs",
        workdir="run directory of the model that embedded the items",
        config=False,
    )
    _add_searched(sub)
    sub.add_argument("--port", type=int, default=8017, help="port of 127.0.0.1; 0 for any that is free (8017)")


def _add_searched(sub: argparse.ArgumentParser) -> None:
    """What is searched, and how."""
    sub.add_argument("--embeddings", type=Path, help="folder that `embed` wrote; searched exactly if it stands alone")
    sub.add_argument("--index", type=Path, help="index file; beside --embeddings it makes the shortlist for them")
    sub.add_argument("--shortlist-dims", type=int, default=0, help="shortlist by so many of the first dimensions")
    sub.add_argument("--shortlist", type=int, help="items on the shortlist that the full vectors rank anew (1000)")
    sub.add_argument("--nprobe", type=int, default=0, help="ivfpq index: lists that are looked into (32)")
    sub.add_argument("--ef-search", type=int, default=0, help="hnsw index: candidates on the way (128)")
    sub.add_argument("--text-instruction", help="system prompt of queries that are text alone (that of the items)")
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")


def _add_weight_verbs(verbs: Any) -> None:
    sub = _verb(
        verbs,
        "export",
        _export,
        "write a trained run as a folder that sentence-transformers and PyTorch load",
        "--workdir runs/glyphs --output exports/glyphs",
        workdir="run directory",
        config=False,
    )
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="type of the weights (float32)")
    sub.add_argument(
        "--license", default="other", help="what the model card says under 'license', for example apache-2.0"
    )
    sub.add_argument(
        "--adapters", action="store_true", help="write LoRA adapters in PEFT's format beside the base model, unmerged"
    )
    sub = _verb(
        verbs,
        "inspect",
        _inspect,
        "say what a Hugging Face checkpoint holds, and the settings with which it can be loaded",
        "--checkpoint Qwen/Qwen2.5-1.5B",
        workdir="",
        config=False,
    )
    sub.add_argument("--checkpoint", required=True, help="directory or hub id")
    sub = _verb(
        verbs,
        "describe",
        _describe,
        "print the parameters of a config's model by tower; what its train step needs on a machine that is not there; or a "
        "reference of all settings",
        "--config configs/sail_1b5.py --topology v5e:16x16 --config.data.batch_size=512",
        workdir="",
        config=False,
    )
    sub.add_argument("--config", type=Path, help="experiment file")
    sub.add_argument("--settings", action="store_true", help="print every setting with type, default and meaning")
    sub.add_argument(
        "--topology",
        help="compile the train step for a TPU slice (v5e:16x16, v5p:4x4x4, v6e:16x16) or a number of GPUs (h100:64, a100:8)",
    )
    sub.add_argument("--stage", default="", help="with --topology: the stage of the run (the first)")
    sub.add_argument(
        "--dataset", default="", help="with --topology: the training set of the batch (the one with the most frames)"
    )


def _add_deploy_verbs(verbs: Any) -> None:
    sub = _verb(
        verbs,
        "embed",
        _embed,
        "embed an item store, a table of items or a folder of files into Parquet parts of `id` and `vector`; killed and started "
        "again, it goes on with the parts that are missing",
        "--workdir runs/glyphs --output embeddings/glyphs --dims 128 --dtype int8",
        workdir="run directory",
        config=False,
    )
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument(
        "--source",
        type=Path,
        help="what is embedded: an item store, a table (CSV, JSONL, Parquet) with the columns of config.ingest.source, or a "
        "folder of image, sound, video and text files, whose paths are the ids; by default the items of config.data.dir",
    )
    sub.add_argument("--dims", type=int, help="dimensions that are kept, best a Matryoshka width of the run (all)")
    sub.add_argument("--dtype", choices=VECTOR_DTYPES, default="float32", help="how vectors are stored (float32)")
    sub.add_argument("--modalities", default=MODALITIES, help="what is shown of the items: V, T, A, VT, ... (VTA)")
    sub.add_argument(
        "--fields",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=TEXT_FIELDS,
        help=f"text fields that are shown ({','.join(TEXT_FIELDS)})",
    )
    sub.add_argument(
        "--instruction",
        default=embedder_lib.DEFAULT_INSTRUCTION,
        help=f"the system prompt; best the one that a task of the run trains for its targets ({embedder_lib.DEFAULT_INSTRUCTION!r})",
    )
    sub.add_argument("--rows-per-part", type=int, default=65_536, help="items of the source per part (65536)")
    sub.add_argument("--batch-size", type=int, help="items per batch (config.eval.batch_size)")
    sub.add_argument("--process", type=int, default=0, help="number of this process, from 0 (0)")
    sub.add_argument(
        "--processes",
        type=int,
        default=1,
        help="how many share the work, each on all devices of its host; they share --output and need not talk (1)",
    )
    sub.add_argument(
        "--distributed",
        action="store_true",
        help="take --process and --processes from the environment of TPU pods, Slurm, Open MPI or Kubernetes",
    )
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")


def _add_semantic_id_verbs(verbs: Any) -> None:
    meaning = "turn embeddings into semantic IDs, short sequences of discrete codes, and find the items of an ID"
    group = verbs.add_parser(
        "semantic-ids",
        help=meaning,
        description=meaning,
        epilog="example: python -m sail_jax semantic-ids fit --embeddings embeddings/items --output sids --levels 256,256,256",
    )
    actions = group.add_subparsers(required=True, metavar="ACTION")
    sub = _verb(
        actions,
        "fit",
        _fit_semantic_ids,
        "fit codebooks on a sample of a folder of embeddings",
        "--embeddings embeddings/items --output sids --levels 256,256,256 --method kmeans",
        workdir="",
        config=False,
        group="semantic-ids",
    )
    sub.add_argument("--embeddings", required=True, type=Path, help="folder of embeddings")
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument(
        "--levels",
        required=True,
        action="append",
        help="sizes of the codebooks, such as 256,256,256; each prefix of an ID is a coarser one. Given several times, "
        "each set of codebooks goes to a folder of its own in --output, such as 256-256-256",
    )
    sub.add_argument(
        "--method",
        choices=semantic_ids_lib.METHODS,
        default="kmeans",
        help="residual k-means, or a learned residual VQ (kmeans)",
    )
    sub.add_argument("--seed", type=_whole, default=0, help="of the sample and the fit (0)")
    sub.add_argument(
        "--samples",
        type=_whole,
        default=semantic_ids_lib.SAMPLES,
        help=f"embeddings to fit on at most; they are held in memory ({semantic_ids_lib.SAMPLES})",
    )
    _add_anchors(sub)
    defaults = VQSettings()
    sub.add_argument("--steps", type=_whole, help=f"with --method vq: updates ({defaults.steps})")
    sub.add_argument("--batch", type=_whole, help=f"with --method vq: embeddings of an update ({defaults.batch})")
    sub.add_argument(
        "--latent",
        type=_whole,
        help="with --method vq: width between a learned encoder and decoder; 0 quantises the embeddings themselves (0)",
    )
    sub = _verb(
        actions,
        "assign",
        _assign_semantic_ids,
        "give the items of a folder of embeddings their semantic IDs, with codebooks as they are",
        "--codebooks sids --embeddings embeddings/new --output sids/new.parquet --unique",
        workdir="",
        config=False,
        group="semantic-ids",
    )
    sub.add_argument("--codebooks", required=True, type=Path, help="folder that `semantic-ids fit` wrote")
    sub.add_argument("--embeddings", required=True, type=Path, help="folder of embeddings of the same model")
    sub.add_argument(
        "--output", required=True, type=Path, help="Parquet table that is written, with figures and a plot beside it"
    )
    sub.add_argument(
        "--unique", action="store_true", help="add a suffix that counts the items of the same codes, from 0, in order"
    )
    sub.add_argument("--seed", type=_whole, default=0, help="of the draw of anchors (0)")
    _add_anchors(sub)
    sub = _verb(
        actions,
        "lookup",
        _look_up_semantic_id,
        "list the items of a semantic ID, or of all IDs that begin with it",
        "--table sids/new.parquet --id 12-3",
        workdir="",
        config=False,
        group="semantic-ids",
    )
    sub.add_argument("--table", required=True, type=Path, help="table that `semantic-ids assign` wrote")
    sub.add_argument("--id", required=True, help="such as 12-3-77, or a prefix such as 12-3")
    sub.add_argument("--limit", type=_whole, default=20, help="items that are listed; all are counted (20)")


def _add_anchors(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--anchors",
        type=_whole,
        default=semantic_ids_lib.ANCHORS,
        help=f"items drawn to see whether neighbours share their IDs; 0 leaves that out ({semantic_ids_lib.ANCHORS})",
    )


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _verb(
    verbs: Any,
    name: str,
    run: Callable,
    meaning: str,
    example: str,
    *,
    workdir: str,
    config: bool = True,
    group: str = "",
) -> argparse.ArgumentParser:
    """Adds a verb; `workdir` says what its --workdir is, and is empty for a verb without one; `group` is the verb that it is an action of."""
    sub = verbs.add_parser(
        name,
        help=meaning,
        description=meaning,
        epilog=f"example: python -m sail_jax {group + ' ' if group else ''}{name} {example}",
        allow_abbrev=False,
    )
    if config:
        sub.add_argument("--config", required=True, type=Path, help="experiment file, configs/*.py")
    if workdir:
        sub.add_argument("--workdir", required=True, type=Path, help=workdir)
    sub.set_defaults(run=run)
    return sub


def _load(path: Path, overrides: list[str]) -> Config:
    return config_lib.load(path, overrides)


def _quickstart(options: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    workdir = options.workdir
    data = workdir / "data"
    config = _load(options.config, [f"data.dir={data}", *overrides])
    console.print("[bold]1/4 A small world of items, users and logs[/bold]")
    make_world(config.synthetic, config.seed, workdir / "world")
    console.print("[bold]2/4 Ingestion[/bold]")
    ingest(config, workdir / "world", data)
    console.print("[bold]3/4 Training[/bold]")
    _train_and_say(config, workdir)
    console.print("[bold]4/4 Evaluation[/bold]")
    _evaluate_and_say(config, workdir)
    console.print(f"Done in {time.monotonic() - began:.0f} s.")


def _ingest(options: argparse.Namespace, overrides: list[str]) -> None:
    ingest(_load(options.config, overrides), options.source, options.workdir)


def _materialize(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _load(options.config, overrides)
    materialize(config, options.dataset, options.output, open_store(config), epochs=options.epochs)
    output = options.output.absolute()
    console.print(f"Written to {output}. Train from it: --config.data.datasets.{options.dataset}.materialized={output}")


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.distributed:
        jax.distributed.initialize()
    _train_and_say(_load(options.config, overrides), options.workdir)


def _train_and_say(config: Config, workdir: Path) -> None:
    result = train(config, workdir)
    run = RunDirectory(workdir)
    if result.start == result.steps:
        console.print(f"The run in {run.path} is already at step {result.steps}.")
        return
    console.print(
        f"Trained steps {result.start + 1} to {result.steps} in {result.seconds:.0f} s, {result.bad_records} bad records. "
        f"Checkpoint: {run.checkpoints}; logs: {run.training_log}, {run.tensorboard}"
    )


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.embeddings and options.config:
        options.workdir.mkdir(parents=True, exist_ok=True)
        config = _load(options.config, overrides)
    else:
        config = _of_run(options, overrides)
    _evaluate_and_say(config, options.workdir, options.embeddings)


def _evaluate_and_say(config: Config, workdir: Path, embeddings: Path | None = None) -> None:
    run = RunDirectory(workdir)
    results, tasks, store = run_suite(config, run.path, embeddings)
    step = None if embeddings else evaluated_step(run.path)
    _write_json(run.metrics, metrics_tree(results))
    _write_json(run.evaluation, evaluation_record(results, step))
    write_report_data(run.report_data, gather(config, run, results, tasks, store))
    write_report(run.report, read_runs([run.path]))
    shown = shown_results(results, tasks)
    for names in dict.fromkeys(tuple(headline(r)) for r in shown):
        _print_results([r for r in shown if tuple(headline(r)) == names], names)
    console.print(
        f"Figures: {run.metrics} (all metrics), {run.evaluation} (with histograms); report: {run.report}; "
        f"charts: {png_folder(run.report)}"
    )


def _print_results(results: list[Result], names: tuple[str, ...]) -> None:
    """A table of results that have the same figures, in per cent."""
    table = Table("task", "view", "model", *(name.replace("recall@", "R@") for name in names), "queries", "corpus")
    for r in results:
        figures = [f"{100 * r.metrics[name]:.1f}" for name in names]
        table.add_row(r.task, r.view, r.model, *figures, str(r.queries), str(r.corpus))
    _print_wide(table)


def _write_json(path: Path, values: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.rename(path)


def _report(options: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise SailError("report reads no config; leave out --config settings.")
    output = options.output.absolute()
    write_report(output, read_runs(options.workdir))
    console.print(f"Report: {output}; charts: {png_folder(output)}")


def _of_run(options: argparse.Namespace, overrides: list[str]) -> Config:
    """The config of the run in --workdir, or --config in its place, with overrides."""
    run = RunDirectory(options.workdir)
    if not run.config.is_file():
        run.load_config()  # says that there is no run
    return _load(options.config or run.config, overrides)


def _mine(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _of_run(options, overrides)
    run = RunDirectory(options.workdir)
    given = {"query_embeddings": options.query_embeddings, "target_embeddings": options.target_embeddings}
    summary = mine_dataset(
        embedder_lib.load(run.path, config),
        config,
        open_store(config),
        options.dataset,
        options.output,
        model=str(run.path),
        **given,
    )
    console.print(str(summary), highlight=False)
    console.print(
        f"Train with them: --config.data.datasets.{options.dataset}.negatives={options.output.absolute()} "
        f"--config.data.datasets.{options.dataset}.hard_negatives=4"
    )


def _balance(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _of_run(options, overrides)
    result = balance(embedder_lib.load(options.workdir, config), config, open_store(config), options.output)
    table = Table("training set", "weight", *result.tasks)
    for row, name in enumerate(result.datasets):
        cells = ["-" if value != value else f"{value:.3f}" for value in result.similarity[row]]
        table.add_row(name, f"{result.weights[row]:.3f}", *cells)
    console.print(table)
    console.print(
        f"Weights: {options.output.absolute()}; heat map: {options.output.with_suffix('.png').absolute()}. "
        f"Train with them: --config.data.weights={options.output.absolute()}"
    )


def _embed(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _of_run(options, overrides)
    if options.distributed:
        jax.distributed.initialize()
        options.process, options.processes = jax.process_index(), jax.process_count()
    names = [field.name for field in dataclasses.fields(EmbedOptions)]
    asked = EmbedOptions(**{name: getattr(options, name) for name in names})
    source = open_source(options.source, config)
    embedder = embedder_lib.load(options.workdir, config)
    if options.distributed:
        jax.distributed.shutdown()  # from here on no process waits for another
    report = embed(embedder, source, options.output, asked, model=str(RunDirectory(options.workdir).path))
    console.print(f"{report}\nWritten to {options.output.absolute()}", highlight=False)


def _index(options: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise SailError("index reads no config; leave out --config settings.")
    settings = IndexSettings(
        kind=options.kind,
        dims=options.dims,
        nlist=options.nlist,
        m=options.m,
        hnsw_m=options.hnsw_m,
        ef_construction=options.ef_construction,
        seed=options.seed,
    )
    output = options.output.absolute()
    info = build_index(EmbeddingSet(options.embeddings), output, settings)
    console.print(
        f"Indexed {info.count:,} vectors of {info.dims} dimensions: {output}. "
        f"Search them: python -m sail_jax search --workdir RUN --index {output} --text 'a query'",
        highlight=False,
    )


def _search(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _of_run(options, overrides)
    files = [QueryFile.read(kind, path) for kind in FILE_KINDS for path in getattr(options, kind)]
    if options.item and (options.text or files):
        raise SailError("--item searches for what is like a stored item; leave out --text and files, or --item.")
    query = None if options.item else query_item(options.text, files, config)
    searcher = _open_searcher(options, config)
    hits = searcher.like([options.item], options.k) if query is None else searcher.search([query], options.k)
    _print_hits(hits[0], _store_or_none(config))


def _open_searcher(options: argparse.Namespace, config: Config) -> Searcher:
    # What is wrong with the folders is said before a model is loaded.
    if options.embeddings is None and options.index is None:
        raise SailError(
            "There is nothing to search: name embeddings, an index of them, or both (--embeddings, --index)."
        )
    if options.index is None and (options.nprobe or options.ef_search):
        raise SailError("--nprobe and --ef-search are for an index; name it with --index.")
    if options.index is None and options.shortlist is not None and not options.shortlist_dims:
        raise SailError("--shortlist needs --shortlist-dims or an --index, by which the shortlist is made.")
    embeddings = None if options.embeddings is None else EmbeddingSet(options.embeddings)
    index = None
    if options.index is not None:
        index = FaissIndex(options.index, nprobe=options.nprobe, ef_search=options.ef_search)
    shortlist = None
    if options.shortlist_dims or options.shortlist is not None:
        size = Shortlist.size if options.shortlist is None else options.shortlist
        shortlist = Shortlist(options.shortlist_dims, size)
    embedder = embedder_lib.load(options.workdir, config)
    return Searcher(embedder, embeddings, index, shortlist=shortlist, text_instruction=options.text_instruction)


def _store_or_none(config: Config) -> ItemStore | None:
    try:
        return open_store(config)
    except SailError as error:
        Console(stderr=True, soft_wrap=True, markup=False).print(f"Items are shown by their ids alone: {error}")
        return None


def _print_hits(hits: list[Hit], store: ItemStore | None) -> None:
    table = Table("rank", "cosine", "id", *(["caption"] if store is not None else []))
    for rank, hit in enumerate(hits, 1):
        words = []
        if store is not None:
            try:
                words = [Text(shorten(caption(store.get(hit.id)), _CAPTION, placeholder=" …"))]
            except BadRecordError:
                words = [Text("not in the item store", style="dim")]
        table.add_row(str(rank), f"{hit.score:.3f}", Text(hit.id), *words)
    Console(width=max(console.width, 120)).print(table)


def _serve(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _of_run(options, overrides)
    searcher = _open_searcher(options, config)
    page = SearchPage(searcher, config, _store_or_none(config), title=RunDirectory(options.workdir).path.name)
    with SearchServer(page, options.port) as server:
        console.print(f"{len(searcher):,} items at {server.url} (this machine alone can open it); Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Stopped.")


def _prompts(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _load(options.config, overrides)
    for preview in previews(config, options.row):
        fields = f", fields {', '.join(preview.view.fields)}" if "T" in preview.view.modalities else ""
        size = f", {preview.tokens} tokens" if preview.tokens else ""
        print(f"# {preview.name}: shows {preview.view.modalities}{fields}{size}")
        print(preview.problem or preview.text, end="\n\n")
    if not config.data.dir:
        print("Set --config.data.dir to the folder that `ingest` wrote, to see the slots filled with real rows.")


def _export(options: argparse.Namespace, overrides: list[str]) -> None:
    run = RunDirectory(options.workdir)
    run.load_config()  # says where there is no run
    steps = export(
        options.workdir,
        options.output,
        _load(run.config, overrides),
        dtype=options.dtype,
        license_name=options.license,
        adapters=options.adapters,
    )
    output = options.output.absolute()
    console.print(f"Exported the model at step {steps} to {output}; {output / 'README.md'} says how to load it.")


def _without_config(verb: str, overrides: list[str]) -> None:
    if overrides:
        raise SailError(f"{verb} reads no config; leave out --config settings.")


def _fit_semantic_ids(options: argparse.Namespace, overrides: list[str]) -> None:
    _without_config("semantic-ids", overrides)
    sizes = [semantic_ids_lib.parse_levels(text) for text in options.levels]
    if len(sizes) == 1:
        outputs = {options.output: sizes[0]}
    else:
        outputs = {options.output / "-".join(map(str, levels)): levels for levels in sizes}
    given = {name: getattr(options, name) for name in ("steps", "batch", "latent")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.method != "vq":
        raise SailError(f"--{next(iter(given))} belongs to --method vq; leave it out, or choose that method.")
    figures = semantic_ids_lib.fit_folder(
        EmbeddingSet(options.embeddings),
        outputs,
        method=options.method,
        seed=options.seed,
        samples=options.samples,
        anchors=options.anchors,
        vq=VQSettings(**given),
    )
    for output, of_output in figures.items():
        _print_wide(figures_table(of_output))
        console.print(
            f"Codebooks: {output.absolute()}, with figures (of the sample) in semantic_ids.json and utilisation.png. Assign IDs: "
            f"semantic-ids assign --codebooks {output} --embeddings {options.embeddings} --output {output / 'ids.parquet'}"
        )


def _assign_semantic_ids(options: argparse.Namespace, overrides: list[str]) -> None:
    _without_config("semantic-ids", overrides)
    figures = write_table(
        SemanticIds.load(options.codebooks),
        EmbeddingSet(options.embeddings),
        options.output,
        unique=options.unique,
        seed=options.seed,
        anchors=options.anchors,
    )
    _print_wide(figures_table(figures))
    if figures["left_out"]:
        console.print(
            f"{figures['left_out']:,} items have no usable vector and got no ID, such as {figures['left_out_ids'][0]!r}."
        )
    output = options.output.absolute()
    console.print(
        f"IDs: {output}; figures: {output.with_suffix('.json')}; use of the codes: {output.with_suffix('.png')}"
    )


def _look_up_semantic_id(options: argparse.Namespace, overrides: list[str]) -> None:
    _without_config("semantic-ids", overrides)
    matches = SemanticIdTable(options.table).find(options.id, options.limit)
    for item, semantic_id in matches.items:
        print(f"{semantic_id}\t{item}")
    following = ", ".join(f"{code} ({count:,})" for code, count in list(matches.next_codes.items())[:10])
    console.print(
        f"{matches.count:,} items, {len(matches.items):,} of them listed; {matches.distinct:,} distinct IDs of all levels."
        + (f" Most frequent codes of the next level, and their items: {following}" if following else ""),
        highlight=False,
    )


def _print_wide(table: Table) -> None:
    """Prints a table wide enough for all columns where the output is no terminal."""
    Console(width=max(console.width, 120)).print(table)


def _inspect(options: argparse.Namespace, overrides: list[str]) -> None:
    _without_config("inspect", overrides)
    directory = find_checkpoint(options.checkpoint)
    for tower, settings in inspect_checkpoint(directory).items():
        print(f"# {tower}: --config.init_from.{tower}={options.checkpoint}")
        for key, value in settings.items():
            print(f"config.model.{tower}.{key} = {value!r}")


def _describe(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.settings:
        for key, kind, default, meaning in meanings(Config):
            print(f"{key}: {kind} = {default!r}\n    {meaning}")
        return
    if options.config is None:
        raise SailError("describe needs --config configs/X.py, or --settings.")
    config = _load(options.config, overrides)
    check_widths(config.objective.matryoshka, config.model.llm.width)
    if options.topology:
        _describe_step(config, options)
        return
    if options.stage or options.dataset:
        raise SailError("--stage and --dataset choose the batch of a compiled step: name a --topology too.")
    table = Table("tower", "parameters")
    for name, count in parameter_table(config.model):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(f"JAX {jax.__version__}, {jax.device_count()} {jax.devices()[0].platform} devices")


def _describe_step(config: Config, options: argparse.Namespace) -> None:
    report = compile_ahead(config, options.topology, stage=options.stage, dataset=options.dataset)
    for heading, rows in report.sections().items():
        table = Table(heading, "", show_edge=False, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table, end="\n\n")
    console.print(report.verdict(), highlight=False)
