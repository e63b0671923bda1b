"""The action `sweep collect`: one table of all members, and the report of the sweep."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from sail_jax.cli.common import console, declare, print_next, print_wide, without_config

if TYPE_CHECKING:
    from sail_jax.sweeps.collect import Collected


def add_actions(actions: Any) -> None:
    """Declares the action."""
    sub = declare(
        actions,
        "collect",
        run,
        "write one table of all members (Parquet and CSV), and a report with means and intervals over seeds",
        "--workdir sweeps/peak",
        workdir="folder of the sweep",
        config="",
    )
    sub.add_argument("--output", type=Path, help="folder of the table and the report (that of the sweep)")
    sub.add_argument("--metric", default="", help="figure that ranks members, such as i2i/recall@10 (the sweep's)")
    sub.add_argument("--baseline", default="", help="combination that others are compared with (the sweep's)")
    sub.add_argument(
        "--data", default="", help="beginning of the digest of the data to compare, if members differ in it"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the table and the report."""
    from sail_jax.evaluation.report.page import png_folder
    from sail_jax.sweeps.collect import collect, write_table
    from sail_jax.sweeps.page import write_sweep_report

    without_config("sweep collect", overrides)
    collected = collect(options.workdir, metric=options.metric, baseline=options.baseline, data=options.data)
    folder = (options.output or options.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    parquet, csv = write_table(collected, folder)
    report = folder / "report.html"
    write_sweep_report(report, collected)
    if collected.compared:
        print_wide(_summary(collected))
    missing = [outcome for outcome in collected.outcomes if outcome.missing]
    for outcome in missing:
        console.print(f"Not compared: {outcome.state.name} ({outcome.missing})", highlight=False)
    console.print(f"Table: {parquet}, {csv}; report: {report}; charts: {png_folder(report)}")
    if missing:
        print_next(options, "sweep", "status", "--workdir", options.workdir)


def _summary(collected: "Collected") -> Table:
    """Returns the figure that ranks members, by combination."""
    from sail_jax.evaluation.metrics.seeds import over_seeds
    from sail_jax.evaluation.report.seed_groups import best_group, difference_cells, format_error
    from sail_jax.evaluation.report.tables import format_metric

    figure, groups = collected.metric, collected.groups()
    metric, best = figure.partition("/")[2], best_group(groups, figure)
    base = next((group for group in groups if group.name == collected.baseline), None)
    heads = ("difference", "95 % interval", "t (needed)", "verdict") if base else ()
    table = Table(Column("combination", overflow="fold"), "seeds", figure, *heads, "device-hours")
    for group in groups:
        found = over_seeds(list(group.values(figure).values()))
        shown = f"{format_metric(metric, found.mean)} ± {format_error(metric, found.standard_error)}"
        cells = difference_cells(group, base, figure) if base else []
        hours = f"{(group.device_seconds or 0) / 3600:.2f}"
        table.add_row(group.name, str(found.n), shown, *cells, hours, style="bold" if group.name == best else "")
    return table
