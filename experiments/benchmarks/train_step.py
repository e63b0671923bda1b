"""A training step of a small text tower on CPU: this package against PyTorch.

    python -m experiments.benchmarks.train_step

Weights, inputs and computation are the same: a Qwen2 stack with bidirectional attention, the mean of the tanh of its
valid tokens, InfoNCE over the pairs of the batch, clipping by global norm and AdamW, in float32. Ours recomputes what
is between the matrix products in the backward pass (`model.remat`, "dots"), which on CPU is faster than storing it.
Ours and the peers take turns, step by step, so that other jobs on the machine disturb all alike.

Axis letters: B sequences, N tokens, D width.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import transformers

from experiments.benchmarks import common
from sail_jax.config.model import LlmConfig
from sail_jax.config.training import MeshConfig, OptimizerConfig
from sail_jax.convert.from_hf import load_tower
from sail_jax.convert.hf_configs import llm_config
from sail_jax.models.llm import Llm
from sail_jax.models.media import masked_mean
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.negative_masks import Negatives
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import abstract_on_mesh
from sail_jax.training.optimizer import make_optimizer

CONFIG = LlmConfig(vocab_size=2048, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp_width=768)
OPTIMIZER = OptimizerConfig()
SEQUENCES, LENGTH, TEMPERATURE, RATE = 64, 64, 0.05, 1e-4
ROUNDS = 15
# Relative differences that are allowed: of the first losses, and of a gradient, by its largest entry.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-4


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Random tokens [B, N] int64, and which of them are valid [B, N] bool: the first 32 to 64 of each sequence."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(CONFIG.vocab_size, size=(SEQUENCES, LENGTH))
    return tokens, np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, size=(SEQUENCES, 1))


# ---------------------------------------------------------------------------------------------------------------- ours


class Ours:
    """The step as the package computes it.

    Args:
        directory: the weights, as transformers saves them.
        tokens: [B, N].
        mask: [B, N].
    """

    def __init__(self, directory: Path, tokens: np.ndarray, mask: np.ndarray) -> None:
        self.model, self.optimizer = Llm(CONFIG, remat="dots"), make_optimizer(OPTIMIZER)
        self.tokens, self.mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), *self._arguments())["params"]
        abstract = abstract_on_mesh({"llm": shapes}, make_mesh(MeshConfig(), jax.devices()[:1]))["llm"]
        self.params = {"llm": load_tower(directory, "llm", CONFIG, abstract).params}
        self.moments = self.optimizer.init(self.params)
        self._step = jax.jit(self._update, donate_argnums=(0, 1))

    def _arguments(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        embeddings = jnp.zeros((*self.tokens.shape, CONFIG.width))
        return embeddings, jnp.zeros(self.tokens.shape, jnp.int32), self.mask

    def loss(self, params: Any) -> jax.Array:
        """The loss, [] float32."""
        variables = {"params": params["llm"]}
        embeddings = self.model.apply(variables, self.tokens, method=Llm.embed)
        positions = jnp.broadcast_to(jnp.arange(LENGTH), self.tokens.shape)
        hidden, _ = self.model.apply(variables, embeddings, positions, self.mask)
        query, target = jnp.split(masked_mean(jnp.tanh(hidden), self.mask), 2)
        pairs = len(query)
        others = Negatives(~jnp.eye(pairs, dtype=bool), jnp.zeros((pairs, 0), bool))
        return info_nce(query, target, jnp.full(pairs, TEMPERATURE), others, jnp.ones(pairs, bool))[0]

    def _update(self, params: Any, moments: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(self.loss)(params)
        updates, moments = self.optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, optax.tree.scale(RATE, updates)), moments, loss

    def step(self) -> float:
        """Does a step and returns the loss before it."""
        self.params, self.moments, loss = self._step(self.params, self.moments)
        return float(jax.block_until_ready((self.params, loss))[1])

    def gradient(self) -> np.ndarray:
        """The gradient of the first layer's down projection, [outputs, inputs]."""
        return np.asarray(jax.jit(jax.grad(self.loss))(self.params)["llm"]["layers"]["mlp"]["down"]["kernel"][0].T)


# ---------------------------------------------------------------------------------------------------------------- peer


class Peer:
    """The step in PyTorch, with transformers' Qwen2Model.

    Args:
        directory: the weights.
        tokens: [B, N].
        mask: [B, N].
        compiled: whether torch.compile is used.
    """

    def __init__(self, directory: Path, tokens: np.ndarray, mask: np.ndarray, *, compiled: bool = False) -> None:
        self.model = transformers.AutoModel.from_pretrained(directory, attn_implementation="sdpa").train()
        self.tokens, self.mask = torch.from_numpy(tokens), torch.from_numpy(mask)
        self.positions = torch.arange(LENGTH).expand(SEQUENCES, -1)
        # Given in full, the mask takes the place of the causal one that the model would make.
        seen = self.mask[:, None, None, :].expand(-1, 1, LENGTH, -1)
        self.bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        decayed = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=RATE,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=OPTIMIZER.eps,
            fused=True,
        )
        self._loss = torch.compile(self.loss) if compiled else self.loss

    def loss(self) -> torch.Tensor:
        """The loss, [] float32."""
        hidden = self.model(
            input_ids=self.tokens, attention_mask=self.bias, position_ids=self.positions, use_cache=False
        ).last_hidden_state
        weights = self.mask[..., None].float()
        z = (hidden.tanh() * weights).sum(1) / weights.sum(1)
        query, target = F.normalize(z, dim=-1).chunk(2)
        scores = query @ target.T / TEMPERATURE
        labels = torch.arange(len(scores))
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    def step(self) -> float:
        """Does a step and returns the loss before it."""
        self.optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        return loss.item()

    def gradient(self) -> np.ndarray:
        """The gradient of the first layer's down projection, [outputs, inputs]."""
        self.optimizer.zero_grad()
        self.loss().backward()
        return self.model.layers[0].mlp.down_proj.weight.grad.numpy().copy()


# --------------------------------------------------------------------------------------------------------- measurement


def check_equal(ours: Ours, peers: dict[str, Peer]) -> dict[str, float]:
    """Compares a gradient and the losses of three steps, and returns their differences.

    Raises:
        AssertionError: they exceed the tolerances.
    """
    expected = ours.gradient()
    losses = [ours.step() for _ in range(3)]
    apart = {"loss": 0.0, "gradient": 0.0}
    for peer in peers.values():
        difference = np.abs(peer.gradient() - expected).max() / np.abs(expected).max()
        apart["gradient"] = max(apart["gradient"], float(difference))
        theirs = [peer.step() for _ in losses]
        apart["loss"] = max(apart["loss"], *(abs(a / b - 1) for a, b in zip(losses, theirs, strict=True)))
    assert apart["loss"] <= LOSS_TOLERANCE, apart
    assert apart["gradient"] <= GRADIENT_TOLERANCE, apart
    return apart


def times(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and process CPU time of each step in ms, taking turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: 1e3 * np.median(pairs, axis=0) for name, pairs in taken.items()}
    return {name: {"wall": float(wall), "cpu": float(cpu)} for name, (wall, cpu) in medians.items()}


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="cores that all are confined to")
    threads = parser.parse_args().threads
    # Before JAX starts, whose threads are as many as the cores that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens, mask = inputs()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        transformers.Qwen2Model(transformers.Qwen2Config(**llm_config(CONFIG))).save_pretrained(directory)
        ours = Ours(directory, tokens, mask)
        peers = {
            "PyTorch, eager": Peer(directory, tokens, mask),
            "PyTorch, torch.compile": Peer(directory, tokens, mask, compiled=True),
        }
    apart = check_equal(ours, peers)
    medians = times({"ours": ours.step} | {name: peer.step for name, peer in peers.items()}, ROUNDS)
    common.write(
        "train_step",
        {
            "machine": common.machine(),
            "versions": common.versions("flax", "optax", "torch", "transformers"),
            "threads": threads,
            "relative_difference": apart,
            "median_ms": medians,
            "rows": [
                {
                    "what": f"train step on CPU, {CONFIG.layers} layers of width {CONFIG.width}, "
                    f"{SEQUENCES} x {LENGTH} tokens, float32",
                    "ours": f"{medians['ours']['wall']:.0f} ms",
                    "peer": f"{medians[name]['wall']:.0f} ms ({name})",
                    "ratio": medians[name]["wall"] / medians["ours"]["wall"],
                }
                for name in peers
            ],
        },
    )


if __name__ == "__main__":
    main()
