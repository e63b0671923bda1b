"""Embedding of short texts on CPU: this package against sentence-transformers on the exported model of the same run.

    python -m experiments.benchmarks.embed_texts

Both embed the same free-text queries of 3 to 12 words, in float32, each with the best of a few batch sizes, and take
turns so that other jobs on the machine disturb both alike. The vectors are asserted equal.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import sail_jax
from configs import quickstart
from experiments.benchmarks import common
from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.convert.export import export
from sail_jax.data.prompts import train_tokenizer
from sail_jax.models.model import init_params
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory

ROUNDS, BATCH_SIZES = 3, (32, 128)
LLM = {"vocab_size": 2048, "width": 256, "layers": 6, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp_width": 768}
TOLERANCE = 1e-5


def make_texts(count: int) -> list[str]:
    """Queries of 3 to 12 words out of 3,000, the first ones more often."""
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(3000)]
    drawn = [(3000 * rng.random(rng.integers(3, 13)) ** 2).astype(int) for _ in range(count)]
    return [" ".join(words[i] for i in row) for row in drawn]


def make_run(directory: Path, texts: list[str]) -> Config:
    """A run whose checkpoint holds fresh parameters; the towers of the media are small, as no text needs them."""
    # With the words of the template too, so that the prompt is as short as under a published tokenizer.
    prompts = [f"{DEFAULT_INSTRUCTION} system user assistant"] * 100
    train_tokenizer([*texts, *prompts], LLM["vocab_size"], directory / "tokenizer")
    values = quickstart.get_config()
    values.model.llm.update(LLM)
    values.model.dtype = "float32"
    values.objective.matryoshka = (LLM["width"],)
    values.data.dir, values.prompt.tokenizer = str(directory), "tokenizer"
    config = config_lib.build(values)
    run = RunDirectory(directory / "run")
    config_lib.save(config, run.config)
    checkpoints = Checkpoints(run)
    checkpoints.save(1, {"model": jax.jit(lambda: init_params(config.model, 0))()}, {})
    checkpoints.close()
    return config


def timed(embed: Callable[[], np.ndarray]) -> dict[str, float]:
    """Wall and process CPU seconds of one pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    embed()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(passes: dict[str, Callable[[], np.ndarray]]) -> dict[str, dict[str, float]]:
    """Medians of alternating passes; a first pass of each compiles, and its vectors are compared."""
    vectors = {name: embed() for name, embed in passes.items()}
    first = next(iter(vectors.values()))
    apart = max(float(np.abs(z - first).max()) for z in vectors.values())
    assert apart <= TOLERANCE, f"the vectors differ by {apart}"
    rounds = [{name: timed(embed) for name, embed in passes.items()} for _ in range(ROUNDS)]
    return {
        name: {kind: float(np.median([entry[name][kind] for entry in rounds])) for kind in ("wall", "cpu")}
        for name in passes
    }


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="cores that both are confined to")
    parser.add_argument("--texts", type=int, default=2000)
    options = parser.parse_args()
    threads = options.threads
    # Before JAX starts, whose threads are as many as the cores that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    texts = make_texts(options.texts)
    passes = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = make_run(Path(scratch), texts)
        export(Path(scratch) / "run", Path(scratch) / "exported", config)
        peer = SentenceTransformer(str(Path(scratch) / "exported"), trust_remote_code=True, device="cpu")
        for size in BATCH_SIZES:
            own = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size))
            embedder = sail_jax.load(Path(scratch) / "run", own)
            passes[f"ours, {size}"] = lambda embedder=embedder: embedder.encode(texts)
            passes[f"sentence-transformers, {size}"] = lambda size=size: peer.encode(texts, batch_size=size)
        medians = measure(passes)
    kinds = {"ours": [], "sentence-transformers": []}
    for name, figures in medians.items():
        kinds[name.split(",")[0]].append(figures)
    best = {
        kind: {clock: min(entry[clock] for entry in found) for clock in ("wall", "cpu")}
        for kind, found in kinds.items()
    }
    ours, theirs = (options.texts / best[kind]["wall"] for kind in kinds)
    common.write(
        "embed_texts",
        {
            "machine": common.machine(),
            "versions": common.versions("flax", "torch", "transformers", "sentence-transformers"),
            "model": LLM,
            "threads": threads,
            "texts": options.texts,
            "median_seconds": medians,
            "best": best,
            "rows": [
                {
                    "what": f"short texts embedded per second on CPU, {threads} threads, {LLM['layers']} layers "
                    f"of width {LLM['width']}, float32, wall clock",
                    "ours": f"{ours:.0f}/s",
                    "peer": f"{theirs:.0f}/s (sentence-transformers, exported model)",
                    "ratio": ours / theirs,
                }
            ],
        },
    )


if __name__ == "__main__":
    main()
