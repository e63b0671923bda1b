"""Kills verbs by SIGKILL again and again, and compares what they wrote with what they write undisturbed.

    python -m experiments.kills --folder FOLDER --train 100 --others 20

`train` sees all modalities, in stages of pairs, of pairs with mined negatives, and of ID embeddings. It is killed at
moments that a seed draws of each kind (`kill_moments`), several times in the life of a run, before that is left to
reach its end; other verbs are killed at random times. A killed verb is started again; when it gets to its end, its
files are compared bit for bit with those of a run that was left alone, and it begins anew. What is compared of a run
are the arrays of its last checkpoint, its losses and the names of its files. A verb is a process forked from one that
has imported the packages and started nothing, so that kills fall where files are written.

The result is written to experiments/results/kills.json, after every end; the status is 1 if anything differs, is left
over, or fails. `--only embed,index` takes some verbs, in their order, and leaves the results of the others as they are;
the folder may be used again, as long as the code is the same: it has what undisturbed runs wrote. `--go-on` adds to the
kills that the result has, all of which were followed by an end that was compared.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from experiments.kill_moments import BY_LOG, DRAWN, KILLS_OF_A_LIFE, KillAt, Moment, Pace, Watch, draw, left_by
from sail_jax import config as config_lib
from sail_jax.__main__ import run
from sail_jax.config.schema import to_dict
from sail_jax.sharding.parameters import path_name

REPO = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "kills.json"
SCRIPT = Path(__file__).resolve()
VERBS = ("train", "mine", "pairs", "sequences", "embed", "index", "semantic-ids", "export", "ingest", "materialize")
# Seconds between looks at a process.
POLL = 0.005
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
    config.model.audio.update(depths=(1,), heads=(2,), projection=16)
    config.objective.matryoshka = (32,)
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 1
    config.train.update(checkpoint_every=2, keep_checkpoints=2, log_every=1)
    config.mining.per_query = 2
    for name in ("copair", "ids"):  # one program each, of all modalities
        config.data.datasets[name].patterns = ("VTA->VTA",)
    config.stages = {
        "1": {"steps": 6, "weights": {"copair": 1.0}},
        "2": {"steps": 4, "weights": {"copair": 1.0}, "mine": ("copair",), "hard_negatives": 1},
        "3": {"steps": 6, "weights": {"ids": 1.0}},
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


def run_verb(words: list[str], errors: Path, within: contextlib.AbstractContextManager) -> NoReturn:
    """Runs a verb in a process of its own, as the command line does; its messages go to a file."""
    os.chdir(REPO)
    with errors.open("w") as stream, Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv[1:] = words
    with within:
        run()


def prepare(folder: Path, verbs: list[str]) -> None:
    """Makes the world, its data, and for verbs other than `train` a trained run and its embeddings."""
    config, data, logs = ["--config", str(SCRIPT)], folder / "data", folder / "logs"
    steps = [
        (logs / "world.json", ["world", *config, "--output", str(logs)]),
        (data / "ingest.json", ["ingest", *config, "--source", str(logs), "--workdir", str(data)]),
        *(
            (data / "tables" / f"{verb}.json", command_of(verb, folder, data / "tables"))
            for verb in ("pairs", "sequences")
        ),
    ]
    if verbs != ["train"]:
        steps += [
            (folder / "run" / "checkpoints" / "16", command_of("train", folder, folder / "run")),
            (folder / "embeddings" / "embeddings.json", command_of("embed", folder, folder / "embeddings")),
        ]
    for done, words in steps:
        if not done.exists():
            print("prepare:", words[0], flush=True)
            subprocess.run([sys.executable, "-m", "sail_jax", *words], check=True, capture_output=True)


class Victim:
    """A verb that is killed at random times.

    Args:
        verb: the verb.
        folder: what `prepare` wrote; outputs go below it.
        processes: of which its own are forked.
        number: its number, among those that are killed side by side.
        seed: of the moments.
        save: is called after every end that was compared.
    """

    def __init__(
        self, verb: str, folder: Path, processes: BaseContext, number: int, seed: str, save: Callable[[], None]
    ) -> None:
        self._verb, self._processes, self._save = verb, processes, save
        self._random = random.Random(f"{verb} {seed} {number}")
        # The undisturbed run writes there too, before the others: some files depend on their path.
        self._output = folder / "killed" / str(number) / verb
        self._errors = folder / f"{verb}.{number}.errors"
        self._reference = folder / f"{verb}.{number}.reference.json"
        self._command = command_of(verb, folder, self._output)
        self._expected: dict[str, str] = {}
        self._pace: Any = None
        self._since: Counter[str] = Counter()  # counts since the last end, which are not compared yet
        self._loads: list[float] = []
        self.counts: Counter[str] = Counter()
        self.different: set[str] = set()
        self.left_over: set[str] = set()
        self.failed: list[str] = []

    async def learn(self) -> bool:
        """Learns from undisturbed runs what the verb writes and how long it takes; returns whether it got to its end.

        The first of two also fills caches. What was learned in the folder before is read.
        """
        if not self._reference.exists():
            for first in (True, False):
                self._begin()
                if (pace := await self._undisturbed()) is None:
                    return False
                if first:
                    self._expected = dict(contents(self._output))
            self._compare()
            self._reference.write_text(json.dumps([self._expected, pace]))
        self._expected, self._pace = json.loads(self._reference.read_text())
        return True

    async def run(self, kills: int, until: float) -> None:
        """Kills the verb so many times, or until a monotonic time, and lets it get to its end after the last one."""
        self._begin()
        while self.counts["kills"] + self._since["kills"] < kills and time.monotonic() < until:
            await self._once()
        while self._since["kills"]:
            if await self._ended(self._start()) == 0:
                self._end()

    async def _undisturbed(self) -> Any:
        """Runs the verb to its end; returns the seconds it took, or None if it did not get there."""
        began = time.monotonic()
        reached = await self._ended(self._start()) == 0
        return time.monotonic() - began if reached else None

    async def _once(self) -> None:
        """Starts the verb, and kills it unless it ends before."""
        process, deadline = self._start(), time.monotonic() + self._random.uniform(0, self._pace)
        while process.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(POLL)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self._count_kill()
        elif await self._ended(process) == 0:
            self._end()

    def _begin(self) -> None:
        shutil.rmtree(self._output, ignore_errors=True)
        # Verbs that write files, not a folder, do not make it.
        place = self._output if self._verb in ("mine", "index") else self._output.parent
        place.mkdir(parents=True, exist_ok=True)

    def _start(self, within: contextlib.AbstractContextManager | None = None) -> BaseProcess:
        arguments = (self._command, self._errors, within or contextlib.nullcontext())
        process = self._processes.Process(target=run_verb, args=arguments)
        process.start()
        return process

    def _count_kill(self, *what: str) -> None:
        self._since.update(("kills", *what))
        self._loads.append(os.getloadavg()[0])
        print(f"{self._output}: killed {self._since['kills']} times since an end: {', '.join(what)}", flush=True)

    async def _ended(self, process: BaseProcess) -> int:
        """Waits for the end of a process; returns its status, and begins anew after a failure."""
        while process.is_alive():
            await asyncio.sleep(POLL)
        process.join()
        if process.exitcode:
            errors = self._errors.read_text().strip().splitlines()
            self.failed.append(f"status {process.exitcode}: {errors[-1] if errors else ''}")
            print(f"{self._output}: {self.failed[-1]}", flush=True)
            self._since.clear()
            self._begin()
        return process.exitcode

    def _end(self) -> None:
        """Compares what was written, and begins anew."""
        self._compare()
        self.counts.update(self._since + Counter(ends_compared=1))
        self._since.clear()
        self._save()
        self._begin()

    def _compare(self) -> None:
        found = dict(contents(self._output))
        self.left_over |= found.keys() - self._expected.keys()
        self.different |= {name for name, digest in self._expected.items() if found.get(name) != digest}

    def record(self) -> dict:
        """Returns the result: of all kills that an end followed, which was compared."""
        loads = self._loads[: self.counts["kills"]]
        return {
            "kills": self.counts["kills"],
            "ends_compared": self.counts["ends_compared"],
            "different": sorted(self.different),
            "left_over": sorted(self.left_over),
            "failed": self.failed,
            "load": sum(loads) / max(1, len(loads)),
        }


class TrainVictim(Victim):
    """Training, which is killed at moments of each kind, several times in the life of a run."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._events = self._errors.with_suffix(".json")
        self._plan: list[str] = []

    async def _undisturbed(self) -> Pace | None:
        began, watch, logged = time.monotonic(), Watch(self._output), {0: 0.0}
        process = self._start(KillAt(self._output, Moment(), self._events))
        while process.is_alive():
            logged.setdefault(watch.step(), time.monotonic() - began)
            await asyncio.sleep(POLL)
        seconds = time.monotonic() - began
        if await self._ended(process) != 0:
            return None
        last = max(logged)
        step = float(np.median(np.diff(list(logged.values())[1:])))  # stages begin with a longer one
        return Pace(logged[1], step, seconds - logged[last], last, json.loads(self._events.read_text()))

    async def _once(self) -> None:
        if not self._plan:
            self._plan = ["", "end", *self._random.sample(DRAWN, KILLS_OF_A_LIFE)]
        kind = self._plan.pop()
        moment = draw(kind, Pace(*self._pace), self._random) if kind else Moment()
        watch = Watch(self._output)
        process = self._start(KillAt(self._output, moment, self._events))
        while process.is_alive():
            if moment.kind in BY_LOG and watch.reached(moment):
                await asyncio.sleep(0.0 if moment.kind == "start" else moment.delay)
                process.kill()
            await asyncio.sleep(POLL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            # A start that was quicker than that of the undisturbed run is over.
            landed = "step" if kind == "start" and watch.step() else kind
            self._count_kill(f"at {landed}", *(f"left {what}" for what in left_by(self._output)))
        elif await self._ended(process) == 0:
            self._end()

    def record(self) -> dict:
        """Returns the result, with the moments of the kills and what these left."""
        moments = {name: count for name, count in sorted(self.counts.items()) if name.startswith(("at ", "left "))}
        return super().record() | {"moments": moments}


def together(records: list[dict]) -> dict:
    """Returns the result of several victims of a verb."""
    kills = sum(record["kills"] for record in records)
    summed = {
        "kills": kills,
        "ends_compared": sum(record["ends_compared"] for record in records),
        **{key: sorted({name for of in records for name in of[key]}) for key in ("different", "left_over")},
        "failed": [failure for record in records for failure in record["failed"]],
        "load": sum(record["load"] * record["kills"] for record in records) / max(1, kills),
    }
    if moments := sum((Counter(record.get("moments", {})) for record in records), Counter()):
        summed["moments"] = dict(sorted(moments.items()))
    return summed


async def kill_all(victims: list[Victim], kills: int, until: float) -> None:
    """Kills a verb so many times, or until a monotonic time, side by side."""
    if await victims[0].learn():
        await asyncio.gather(*(victim.learn() for victim in victims))
        shares = [kills // len(victims) + (number < kills % len(victims)) for number in range(len(victims))]
        await asyncio.gather(*(victim.run(share, until) for victim, share in zip(victims, shares, strict=True)))


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
    parser.add_argument("--jobs", type=int, default=1, help="runs of a verb that are killed side by side (1)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which nothing is killed any more (none)")
    parser.add_argument("--go-on", action="store_true", help="add to the kills that the result has")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON that is written (experiments/results)")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    folder, chosen = options.folder.absolute(), options.only.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "PYTHONPATH": str(REPO),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Programs that run for a moment are compiled with the least effort.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    }
    prepare(folder, chosen)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["experiments.kill_moments", "sail_jax.training.loop"])
    verbs = json.loads(options.output.read_text())["verbs"] if options.output.exists() else {}
    for verb in chosen:
        kills = options.train if verb == "train" else options.others
        earlier = [verbs[verb]] if options.go_on and verb in verbs else []
        done = sum(record["kills"] for record in earlier)
        victims: list[Victim] = []

        def save(verb: str = verb, earlier: list[dict] = earlier, victims: list[Victim] = victims) -> None:
            verbs[verb] = together([*earlier, *(victim.record() for victim in victims)])
            result = {"machine": platform.platform(), "cores": os.cpu_count(), "verbs": verbs}
            options.output.write_text(json.dumps(result, indent=2) + "\n")

        kind = TrainVictim if verb == "train" else Victim
        victims += (kind(verb, folder, processes, number, str(done), save) for number in range(options.jobs))
        asyncio.run(kill_all(victims, max(0, kills - done), until))
        save()
        print(verb, json.dumps(verbs[verb]), flush=True)
    bad = [verb for verb, found in verbs.items() if found["different"] or found["left_over"] or found["failed"]]
    sys.exit(f"Not as undisturbed: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
