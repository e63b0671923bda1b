"""The command line: `python -m sail_jax VERB --config configs/X.py --config.a.b=value --workdir DIR`."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from sail_jax import config as config_lib
from sail_jax import embedder as embedder_lib
from sail_jax.checkpoint import Checkpoints, RunDirectory
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
from sail_jax.data.synthetic import make_world
from sail_jax.data.training_set import materialize
from sail_jax.errors import SailError
from sail_jax.evaluation.report import png_folder, write_report
from sail_jax.evaluation.report_data import read_runs, write_evaluation, write_report_data
from sail_jax.evaluation.suite import metrics_tree, run_suite
from sail_jax.evaluation.summary import gather
from sail_jax.models.describe import parameter_table
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.schema import meanings
from sail_jax.training.ahead import compile_ahead
from sail_jax.training.loop import train

INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended
console = Console(soft_wrap=True)
_QUICKSTART_CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status. Errors meant for the user are printed without a traceback."""
    arguments, overrides = _split(list(sys.argv[1:] if argv is None else argv))
    options = _parser().parse_args(arguments)
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
        "evaluate a trained run and write metrics.json and report.html beside it",
        "--workdir runs/glyphs",
        workdir="run directory",
        config=False,
    )
    sub.add_argument("--config", type=Path, help="experiment file; by default the one that the run was started with")
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


def _verb(
    verbs: Any, name: str, run: Callable, meaning: str, example: str, *, workdir: str, config: bool = True
) -> argparse.ArgumentParser:
    """Adds a verb; `workdir` says what its --workdir is, and is empty for a verb without one."""
    sub = verbs.add_parser(
        name,
        help=meaning,
        description=meaning,
        epilog=f"example: python -m sail_jax {name} {example}",
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
    _evaluate_and_say(_of_run(options, overrides), options.workdir)


def _evaluate_and_say(config: Config, workdir: Path) -> None:
    run = RunDirectory(workdir)
    results, tasks, store = run_suite(config, run.path)
    metrics = metrics_tree(results)
    partial = run.metrics.with_suffix(".partial")
    partial.write_text(json.dumps(metrics, indent=2) + "\n")
    partial.rename(run.metrics)
    write_evaluation(run.evaluation, results, Checkpoints(run).latest())
    write_report_data(run.report_data, gather(config, run, results, tasks, store))
    write_report(run.report, read_runs([run.path]))
    table = Table("task", "view", "model", *(f"R@{k}" for k in config.eval.ks), "queries", "corpus")
    for r in results:
        figures = [f"{100 * r.metrics[f'recall@{k}']:.1f}" for k in config.eval.ks]
        table.add_row(r.task, r.view, r.model, *figures, str(r.queries), str(r.corpus))
    # Recall in per cent; wide enough for all columns where the output is no terminal.
    Console(width=max(console.width, 120)).print(table)
    console.print(
        f"Figures: {run.metrics} and {run.evaluation}; report: {run.report}; charts: {png_folder(run.report)}"
    )


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


def _inspect(options: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise SailError("inspect reads no config; leave out --config settings.")
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
