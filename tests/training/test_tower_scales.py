"""Scales at the LLM's input and gradient norms by part, of arrays given by hand."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax.data.pipeline import LoadedBatch
from sail_jax.runs.directory import RunDirectory
from sail_jax.training.time_spent import TimeSpent
from sail_jax.training.tower_scales import gradient_norms, input_scales
from sail_jax.training.training_log import TrainingLog
from sail_jax.training.work import Work


def test_scales_are_root_mean_squares_over_the_positions_of_all_pairs():
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(n, 8)).astype(np.float32) for n in (3, 5)]  # of the two pairs
    power = np.zeros((2, 3, 2), np.float32)
    power[:, 1] = [((x**2).mean(-1).sum(), len(x)) for x in tokens]
    scales = input_scales(jnp.asarray(power))
    assert scales["scale/text"] == pytest.approx(np.sqrt((np.concatenate(tokens) ** 2).mean()))
    assert np.isnan(scales["scale/vision"]) and np.isnan(scales["scale/sound"])
    assert input_scales(None) == {}


def test_norms_by_part_give_the_global_norm():
    gradient = {
        "model": {"llm": {"embedding": jnp.array([3.0]), "layers": {"up": jnp.array([4.0])}}, "vit": jnp.array([2.0])},
        "lora": {"llm": {"layers": {"up": {"a": jnp.array([3.0])}}}},
        "objective": {"log_temperature": jnp.array([1.0, 1.0])},
    }
    norms = gradient_norms(gradient)
    parts = {"embedding": 3.0, "llm": 5.0, "vit": 2.0, "objective": 2**0.5}
    expected = {f"gradient_norm/{part}": norm for part, norm in parts.items()}
    assert norms == pytest.approx(expected | {"gradient_norm": float(optax.tree.norm(gradient))})


def test_the_log_leaves_out_steps_without_a_modality(tmp_path):
    log = TrainingLog(RunDirectory(tmp_path), ["pairs"], 0, TimeSpent())
    for scale in (np.nan, 0.5):
        metrics = {"loss": np.nan, "nonfinite": False, "scale/text": scale, "scale/vision": np.nan}
        log.add(LoadedBatch((), 1, (0,), None, (), 0, 0), metrics, Work(1, 1, None))
    log.flush(2)
    log.close()
    (line,) = map(json.loads, RunDirectory(tmp_path).training_log.read_text().splitlines())
    assert line["scale/text"] == 0.5 and "scale/vision" not in line and np.isnan(line["loss"])
