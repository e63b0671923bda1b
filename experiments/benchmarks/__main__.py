"""Runs the benchmarks that this machine supports, and writes the table of docs/benchmarks.md.

    python -m experiments.benchmarks                  # all of them, then the table
    python -m experiments.benchmarks packing search   # some of them, then the table
    python -m experiments.benchmarks --table          # only the table, from the existing JSON

Each runs in its own process; a failure is reported, and the others continue. Run them on an idle machine.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.common import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: benchmarks -->\n", "<!-- end -->"
# Benchmark -> the package that it needs.
NEEDS = {
    "packing": "numpy",
    "input_pipeline": "simplejpeg",
    "search": "faiss",
    "train_step": "torch",
    "embed_texts": "sentence_transformers",
    "compile_time": "flax",
    "loss_memory": "libtpu",
    "step_memory": "libtpu",
    "pod_compile": "libtpu",
}


def table() -> str:
    """The table of docs/benchmarks.md, of all existing figures."""
    lines = ["| what | ours | peer | ratio | where |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        for row in figures["rows"]:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            lines.append(f"| {row['what']} | {row['ours']} | {row['peer']} | {ratio} | {_where(path.stem, figures)} |")
    return "\n".join(lines) + "\n"


def _where(name: str, figures: dict) -> str:
    machine = figures["machine"]
    load = f", load {machine['load_average_before'][0]:.0f} to {machine['load_average_after'][0]:.0f}"
    return f"`{name}`, {machine['cores']} cores{load}, jax {figures['versions']['jax']}"


def with_table(page: str) -> str:
    """The page with the table replaced."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END, 1)[1]


def run(names: list[str]) -> list[str]:
    """Runs benchmarks; returns those that failed."""
    failed = []
    for name in names:
        if importlib.util.find_spec(NEEDS[name]) is None:
            print(f"{name}: left out, it needs the package {NEEDS[name]}")
            continue
        print(f"{name}: running", flush=True)
        if subprocess.run([sys.executable, "-m", f"experiments.benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    return failed


def main() -> int:
    """Parses the command line, runs, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks: {', '.join(NEEDS)} (all)")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NEEDS):
        parser.error(f"there is no benchmark {min(unknown)!r}; choose of {', '.join(NEEDS)}")
    failed = [] if options.table else run(options.names or list(NEEDS))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Table: {PAGE}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
