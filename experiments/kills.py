"""Kills verbs by SIGKILL again and again, and compares what they wrote with what they write undisturbed.

    python -m experiments.kills --folder FOLDER --train 100 --others 20

`train` sees all modalities, in stages of pairs, sequences and ID embeddings, one of which mines; every other time it is
killed in the middle of a save. A killed verb is started again; when it gets to its end, its files are compared bit for
bit with those of a run that was left alone, and it begins anew. What is compared of a run are the arrays of its last
checkpoint, its losses and the names of its files. A verb is a process forked from one that has imported the packages
and started nothing, so that kills fall where files are written. The result is written to
experiments/results/kills.json; the status is 1 if anything differs, is left over, or fails. `--only embed,index` takes
some verbs, in their order, and leaves the results of the others as they are; the folder may be used again.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from sail_jax import config as config_lib
from sail_jax.__main__ import run
from sail_jax.config.schema import to_dict
from sail_jax.sharding.parameters import path_name

REPO = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "kills.json"
SCRIPT = Path(__file__).resolve()
VERBS = ("train", "mine", "pairs", "sequences", "embed", "index", "semantic-ids", "export", "ingest", "materialize")
# What two undisturbed runs do not have in common either: times, and names with the time or the process in them.
TIMES = re.compile(r"(?m)^.*(?:seconds|_at|/s|created|duration)\b.*$")


def get_config() -> ml_collections.ConfigDict:
    """The experiment: configs/recommender.py, as small as it gets."""
    config = config_lib.default_config()
    config.update(to_dict(config_lib.load(REPO / "configs" / "recommender.py")))
    config.synthetic.update(num_items=240, log_users=200, log_events_per_user=60, communities=6)
    config.ingest.items_per_shard = 64
    config.model.llm.update(width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=48)
    config.model.vit.update(image_size=28, width=16, layers=1, heads=2, mlp_width=24)
    config.model.perceiver.update(latents=2, width=16, layers=1, heads=2, mlp_width=24, max_frames=2)
    config.model.audio.update(clip_seconds=1.0, hop=500, mel_bins=16, spec_size=32, patch_size=4, width=8)
    config.model.audio.update(depths=(1, 1), heads=(2, 2), projection=16)
    config.objective.matryoshka = (32, 16)
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 1
    config.train.update(checkpoint_every=2, keep_checkpoints=2, log_every=1)
    config.mining.per_query = 2
    config.stages = {
        "1": {"steps": 6, "weights": {"copair": 1.0, "search": 1.0}},
        "2": {"steps": 4, "weights": {"copair": 1.0}, "mine": ("copair",), "hard_negatives": 1},
        "3": {"steps": 4, "weights": {"ids": 1.0, "seq_content_multi": 1.0}},
    }
    return config


def command_of(verb: str, folder: Path, output: Path) -> list[str]:
    """Returns the words of a verb that writes `output` from what was prepared in a folder."""
    run, data, logs, embeddings = (str(folder / name) for name in ("run", "data", "logs", "embeddings"))
    config = ["--config", str(SCRIPT)]
    in_data = [*config, f"--config.data.dir={data}"]
    tables = ["--source", logs, "--workdir", data, "--output", str(output)]
    words = {
        "train": [*in_data, "--workdir", str(output)],
        "mine": ["--workdir", run, "--dataset", "copair", "--output", str(output / "copair.parquet")],
        "pairs": [*config, *tables],
        "sequences": [*config, *tables],
        "embed": ["--workdir", run, "--output", str(output), "--rows-per-part=32"],
        "index": ["--embeddings", embeddings, "--output", str(output / "index.faiss"), "--kind", "hnsw"],
        "semantic-ids": ["fit", "--embeddings", embeddings, "--output", str(output), "--levels", "8,8"],
        "export": ["--workdir", run, "--output", str(output)],
        "ingest": [*config, "--source", logs, "--workdir", str(output)],
        "materialize": [*in_data, "--dataset", "copair", "--output", str(output)],
    }
    return [verb, *words[verb]]


def run_verb(words: list[str], errors: Path) -> NoReturn:
    """Runs a verb in a process of its own, as the command line does; its messages go to a file."""
    os.chdir(REPO)
    with errors.open("w") as stream, Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv[1:] = words
    run()


def prepare(folder: Path) -> None:
    """Makes the world, its data, a trained run and its embeddings, unless they are there."""
    config, data, logs = ["--config", str(SCRIPT)], folder / "data", folder / "logs"
    steps = [
        (logs / "world.json", ["world", *config, "--output", str(logs)]),
        (data / "ingest.json", ["ingest", *config, "--source", str(logs), "--workdir", str(data)]),
        *(
            (data / "tables" / f"{verb}.json", command_of(verb, folder, data / "tables"))
            for verb in ("pairs", "sequences")
        ),
        (folder / "run" / "checkpoints" / "14", command_of("train", folder, folder / "run")),
        (folder / "embeddings" / "embeddings.json", command_of("embed", folder, folder / "embeddings")),
    ]
    for done, words in steps:
        if not done.exists():
            print("prepare:", words[0], flush=True)
            subprocess.run([sys.executable, "-m", "sail_jax", *words], check=True, capture_output=True)


class Victim:
    """A verb that is killed.

    Args:
        verb: the verb.
        folder: what `prepare` wrote; outputs go below it.
        processes: of which its own are forked.
    """

    def __init__(self, verb: str, folder: Path, processes: BaseContext) -> None:
        self._verb, self._processes, self._random = verb, processes, random.Random(verb)
        self._errors = folder / f"{verb}.errors"
        # The undisturbed run writes there too, before the others: some files hold their path.
        self._output = folder / "killed" / verb
        self._command = command_of(verb, folder, self._output)
        self.kills, self.ends = 0, 0
        self.different: set[str] = set()
        self.left_over: set[str] = set()
        self.failed: list[str] = []

    def run(self, kills: int) -> None:
        """Kills the verb so many times, and lets it get to its end after the last one."""
        for _ in range(2):  # the first one also fills caches: the second tells how long it takes
            began = time.monotonic()
            self._begin()
            if self._ended(self._start()) != 0:
                return
            seconds = time.monotonic() - began
        self._expected = dict(contents(self._output))
        self._begin()
        while self.kills < kills:
            process = self._start()
            if self._wait(process, seconds):
                process.kill()
                process.join()
                self.kills += 1
                print(f"{self._verb}: killed {self.kills} times, at its end {self.ends} times", flush=True)
            elif self._ended(process) == 0:
                self._compare()
                self._begin()
        if self._ended(self._start()) == 0:
            self._compare()

    def _begin(self) -> None:
        shutil.rmtree(self._output, ignore_errors=True)
        # Verbs that write files, not a folder, do not make it.
        place = self._output if self._verb in ("mine", "index") else self._output.parent
        place.mkdir(parents=True, exist_ok=True)

    def _start(self) -> BaseProcess:
        process = self._processes.Process(target=run_verb, args=(self._command, self._errors))
        process.start()
        return process

    def _wait(self, process: BaseProcess, seconds: float) -> bool:
        """Waits for a moment at which to kill; returns False if the process ended before."""
        in_a_save = self._verb == "train" and self.kills % 2 == 1
        deadline = time.monotonic() + self._random.uniform(0, seconds)
        saves = self._output / "checkpoints"
        while process.is_alive():
            if in_a_save and any(saves.glob("*.orbax-checkpoint-tmp")):
                time.sleep(self._random.uniform(0, 0.1))
                return process.is_alive()
            if not in_a_save and time.monotonic() > deadline:
                return True
            time.sleep(0.002)
        return False

    def _ended(self, process: BaseProcess) -> int:
        """Waits for the end of a process; returns its status, and begins anew after a failure."""
        process.join()
        if process.exitcode:
            errors = self._errors.read_text().strip().splitlines()
            self.failed.append(f"status {process.exitcode}: {errors[-1] if errors else ''}")
            print(f"{self._verb}: {self.failed[-1]}", flush=True)
            self._begin()
        return process.exitcode

    def _compare(self) -> None:
        found = dict(contents(self._output))
        self.left_over |= found.keys() - self._expected.keys()
        self.different |= {name for name, digest in self._expected.items() if found.get(name) != digest}
        self.ends += 1

    def record(self) -> dict:
        """Returns the result."""
        return {
            "kills": self.kills,
            "ends_compared": self.ends,
            "different": sorted(self.different),
            "left_over": sorted(self.left_over),
            "failed": self.failed,
            "load": os.getloadavg()[0],
        }


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of what a verb wrote, without the times in it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith("checkpoints/"):
            continue
        if name.startswith("tensorboard/"):  # a file for each start
            yield "tensorboard", ""
            continue
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([(line["step"], line.get("loss")) for line in lines]).encode()
        elif path.suffix in (".json", ".jsonl", ".html", ".md"):
            content = TIMES.sub("", content.decode()).encode()
        yield name, hashlib.sha256(content).hexdigest()
    yield from checkpoints(folder / "checkpoints")


def checkpoints(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the names of the checkpoints of a run, and the digest of each array of the last one."""
    if not folder.is_dir():
        return
    yield from ((f"checkpoints/{path.name}", "") for path in sorted(folder.iterdir()))
    last = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    reader = ocp.PyTreeCheckpointer()
    for item in ("model", "training"):
        structure = reader.metadata(last / item).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        arrays = jax.tree_util.tree_leaves_with_path(reader.restore(last / item, restore_args=on_host))
        for path, array in arrays:
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            yield f"checkpoints/{last.name}/{item}/{path_name(path)}", digest


def main() -> None:
    """Kills the verbs and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for the data and the outputs")
    parser.add_argument("--train", type=int, default=100, help="number of kills of train (100)")
    parser.add_argument("--others", type=int, default=20, help="number of kills of each other verb (20)")
    parser.add_argument("--only", default=",".join(VERBS), help="verbs, separated by commas (all)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON that is written (experiments/results)")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "PYTHONPATH": str(REPO),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    prepare(folder)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["sail_jax.training.loop"])
    verbs = json.loads(options.output.read_text())["verbs"] if options.output.exists() else {}
    for verb in options.only.split(","):
        victim = Victim(verb, folder, processes)
        victim.run(options.train if verb == "train" else options.others)
        verbs[verb] = victim.record()
        print(verb, json.dumps(verbs[verb]), flush=True)
        result = {"machine": platform.platform(), "cores": os.cpu_count(), "verbs": verbs}
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    bad = [verb for verb, found in verbs.items() if found["different"] or found["left_over"] or found["failed"]]
    sys.exit(f"Not as undisturbed: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
