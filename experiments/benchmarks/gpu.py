"""Training and bulk embedding on one GPU: this package against the exported model in PyTorch.

    python -m experiments.benchmarks.gpu

Both have the same weights and inputs, at paper size in bfloat16. Training compares our whole train step (forward,
backward, AdamW), with its share of the device's peak (MFU), with forward and backward of the exported model under
torch.compile with fused attention. Embedding compares items per second with sentence-transformers. The FLOPs of the
model are those that PyTorch counts in one forward pass, times three. `--tiny` runs the same code at toy size on any
machine, as a check; its figures mean nothing.

Axis letters: I items, N tokens, F frames.
"""

import argparse
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch.utils.flop_counter import FlopCounterMode

import sail_jax
from configs import quickstart
from experiments.benchmarks import common
from sail_jax import config as config_lib
from sail_jax.batch import Batch, TokenType
from sail_jax.config import Config
from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.convert.export import export
from sail_jax.data.prompts import train_tokenizer
from sail_jax.errors import SailError
from sail_jax.items import Item
from sail_jax.models.model import example_batch, init_params, make_model
from sail_jax.objectives.matching import Recipe
from sail_jax.patterns import Pattern
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh, shard_batch
from sail_jax.training.setup import TrainSetup
from sail_jax.training.state import first_state
from sail_jax.training.step import compile_step

# Dense bfloat16 FLOP/s, by what the name of the device contains; from NVIDIA's data sheets of the SXM cards.
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
RECIPE = Recipe((Pattern("VT", "VT"),), ("nce",))
TEXT_TOKENS, REPEATS, TEMPERATURE = 256, 5, 0.05
# Least cosine between our vectors and the peer's: both compute in bfloat16.
COSINE = 0.98


def make_config(directory: Path, *, tiny: bool) -> Config:
    """The full-size config, or that of the quickstart, with a newly trained tokenizer."""
    values = quickstart.get_config() if tiny else config_lib.default_config()
    values.data.datasets = {"pairs": {"table": "pairs.parquet", "patterns": ("VT->VT",)}}
    values.eval.tasks = {}
    values.eval.batch_size = 4 if tiny else 32
    values.model.dtype = "bfloat16"
    values.model.remat = "full"
    values.optimizer.warmup_steps = 0
    values.data.dir, values.prompt.tokenizer = str(directory), "tokenizer"
    train_tokenizer(
        [f"a title of an item {DEFAULT_INSTRUCTION} system user assistant"] * 9, 512, directory / "tokenizer"
    )
    return config_lib.build(values)


def make_run(config: Config, directory: Path) -> Any:
    """Creates a run whose checkpoint holds random parameters; returns them."""
    params = jax.jit(lambda: init_params(config.model, config.seed))()
    run = RunDirectory(directory)
    config_lib.save(config, run.config)
    checkpoints = Checkpoints(run)
    checkpoints.save(1, {"model": params}, {})
    checkpoints.close()
    return params


def training_batch(config: Config, pairs: int, tokens: int) -> Batch:
    """A batch of noise: pairs of items with text and all frames that fit."""
    rng, model = np.random.default_rng(0), config.model
    items, frames, latents = 2 * pairs, model.perceiver.max_frames, model.perceiver.latents
    types = np.full((pairs, 2, tokens), TokenType.TEXT, np.int8)
    types[..., :latents] = TokenType.VISION
    ids = rng.integers(model.llm.vocab_size, size=types.shape).astype(np.int32)
    size = model.vit.image_size
    keys = np.arange(4 * pairs, dtype=np.uint32).reshape(pairs, 2, 2)
    return example_batch(model, pairs, tokens)._replace(
        tokens=np.where(types == TokenType.TEXT, ids, 0),
        token_types=types,
        frames=rng.integers(256, size=(items * frames, size, size, 3), dtype=np.uint8),
        frame_item=np.repeat(np.arange(items, dtype=np.int32), frames),
        frame_slot=np.tile(np.arange(frames, dtype=np.int32), items),
        clips=np.zeros((0, model.audio.clip_samples), np.int16),
        clip_item=np.zeros(0, np.int32),
        item_keys=keys,
        text_keys=keys,
    )


# ------------------------------------------------------------------------------------------------------------- training


def our_step(config: Config, params: Any, batch: Batch) -> Callable[[], Any]:
    """A function that does one train step as `train` compiles it."""
    setup = TrainSetup.of(config, make_mesh(config.mesh, jax.devices()[:1]))
    compiled, on_device = compile_step(setup), shard_batch(batch, setup.mesh)
    parts = setup.objective, setup.optimizer, config.seed
    first = jax.jit(lambda params: first_state(config, params, *parts), donate_argnums=0)
    held = [first(params)]

    def run() -> Any:
        state, metrics = compiled(held.pop(), on_device, RECIPE, setup.values)
        held.append(state)
        return state, metrics

    return run


def torch_inputs(config: Config, batch: Batch, device: str) -> dict[str, torch.Tensor]:
    """Converts a batch to the inputs of the exported model."""
    vit, items = config.model.vit, batch.tokens.shape[0] * 2
    mean, std = (torch.tensor(values)[:, None, None] for values in (vit.image_mean, vit.image_std))
    arrays = {
        "input_ids": torch.from_numpy(batch.tokens.reshape(items, -1)).long(),
        "token_types": torch.from_numpy(batch.token_types.reshape(items, -1)).long(),
        "pixel_values": (torch.from_numpy(batch.frames).permute(0, 3, 1, 2) / 255 - mean) / std,
        "frame_item": torch.from_numpy(batch.frame_item).long(),
        "frame_slot": torch.from_numpy(batch.frame_slot).long(),
    }
    return {name: array.to(device) for name, array in arrays.items()}


def check_equal(config: Config, params: Any, batch: Batch, theirs: torch.Tensor) -> float:
    """The least cosine between our vectors and theirs [I, D].

    Raises:
        AssertionError: it is too small.
    """
    model = make_model(config.model)
    (query, target), _ = jax.jit(lambda params, batch: model.apply({"params": params}, batch, RECIPE.views))(
        params, batch
    )
    ours = np.concatenate([np.asarray(query[0])[:, None], np.asarray(target[0])], axis=1).reshape(theirs.shape)
    least = float(F.cosine_similarity(torch.from_numpy(ours), theirs.float().cpu()).min())
    assert least >= COSINE, f"our vectors and the peer's have a cosine of {least}"
    return least


def peer_step(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A function that does forward and backward of the exported model, without an optimiser."""
    compiled = torch.compile(model.train())

    def run() -> None:
        model.zero_grad()
        query, target = F.normalize(compiled(**inputs).embedding, dim=-1).unflatten(0, (-1, 2)).unbind(1)
        scores = query @ target.T / TEMPERATURE
        F.cross_entropy(scores, torch.arange(len(scores), device=scores.device)).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


# ------------------------------------------------------------------------------------------------------------ embedding


def pictures(count: int, size: int) -> list[bytes]:
    """JPEG files of smooth noise."""
    rng, out = np.random.default_rng(1), []
    for _ in range(count):
        stream = io.BytesIO()
        noise = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        noise.resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG")
        out.append(stream.getvalue())
    return out


def bulk(embedder: Any, peer: SentenceTransformer, count: int, batch_size: int) -> dict[str, float]:
    """Items with a title and a picture embedded per second by each, including decoding."""
    files = pictures(count, embedder.config.model.vit.image_size)
    titles = [f"title {i} of an item" for i in range(count)]
    ours = [Item(str(i), {"title": t}, (f,)) for i, (t, f) in enumerate(zip(titles, files, strict=True))]
    seconds = common.median_of(lambda: embedder.encode(ours), REPEATS)

    def encode() -> np.ndarray:
        theirs = [{"title": t, "image": Image.open(io.BytesIO(f))} for t, f in zip(titles, files, strict=True)]
        return peer.encode(theirs, batch_size=batch_size)

    return {"ours": count / seconds, "sentence-transformers": count / common.median_of(encode, REPEATS)}


# ----------------------------------------------------------------------------------------------------------------- main


def measure(config: Config, directory: Path, *, device: str, pairs: int, tokens: int, items: int) -> dict[str, Any]:
    """All figures."""
    params = make_run(config, directory / "run")
    export(directory / "run", directory / "exported", config, dtype="bfloat16")
    options = {"trust_remote_code": True, "device": device, "model_kwargs": {"dtype": torch.bfloat16}}
    peer = SentenceTransformer(str(directory / "exported"), **options)
    figures = bulk(sail_jax.load(directory / "run", config), peer, items, config.eval.batch_size)
    batch = training_batch(config, pairs, tokens)
    model, inputs = peer[0].model, torch_inputs(config, batch, device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs = model(**inputs).embedding
    cosine = check_equal(config, params, batch, theirs)
    peer_seconds = common.median_of(peer_step(model, inputs), REPEATS)
    del model, peer, theirs
    seconds = common.median_of(our_step(config, params, batch), REPEATS)
    return {
        "least_cosine": cosine,
        "flops_per_step": 3 * counter.get_total_flops(),
        "train_seconds": {"ours": seconds, "exported, forward and backward": peer_seconds},
        "embedded_per_second": figures,
    }


def rows(figures: dict[str, Any], items: int, peak: float | None) -> list[dict[str, Any]]:
    """The rows of the table of docs/benchmarks.md."""
    ours, theirs = figures["train_seconds"].values()
    mfu = "" if peak is None else f", MFU {figures['flops_per_step'] / ours / peak:.0%}"
    own, peer = figures["embedded_per_second"].values()
    return [
        {
            "what": "train step, bfloat16",
            "ours": f"{items / ours:.1f} items/s{mfu}",
            "peer": f"{items / theirs:.1f} items/s (exported model, torch.compile, without an optimiser)",
            "ratio": theirs / ours,
        },
        {
            "what": "bulk embedding of a title and a picture, bfloat16",
            "ours": f"{own:.1f} items/s",
            "peer": f"{peer:.1f} items/s (sentence-transformers)",
            "ratio": own / peer,
        },
    ]


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy size, on any machine")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a training batch")
    options = parser.parse_args()
    # JAX would take most of the memory at its start, and PyTorch needs its share.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    has_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    if not has_gpu and not options.tiny:
        raise SailError("There is no GPU that both JAX and PyTorch see; use one, or try the path with --tiny.")
    kind = jax.devices()[0].device_kind
    sizes = {"tokens": 24, "items": 8} if options.tiny else {"tokens": TEXT_TOKENS, "items": 512}
    with tempfile.TemporaryDirectory() as scratch:
        config = make_config(Path(scratch), tiny=options.tiny)
        figures = measure(config, Path(scratch), device="cuda" if has_gpu else "cpu", pairs=options.pairs, **sizes)
    peak = next((flops for name, flops in PEAK.items() if name in kind), None)
    figures |= {
        "machine": common.machine(),
        "versions": common.versions("flax", "torch", "transformers", "sentence-transformers"),
        "pairs": options.pairs,
        "rows": rows(figures, 2 * options.pairs, peak),
    }
    if options.tiny:
        print(json.dumps(figures, indent=2))
    else:
        common.write("gpu", figures)


if __name__ == "__main__":
    main()
