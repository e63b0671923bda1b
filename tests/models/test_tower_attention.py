"""The attention kernels that are named are those that the towers ask for."""

import dataclasses

import jax
import pytest

from sail_jax import config as config_lib
from sail_jax.models import tower_attention, transformer
from sail_jax.models.model import example_batch, make_model
from sail_jax.models.tower_attention import tower_kernels


def quickstart(**settings):
    return config_lib.load("quickstart", [f"model.{name.replace('__', '.')}={to}" for name, to in settings.items()])


@pytest.mark.parametrize("kind", ["fusion", "dual_tower"])
def test_the_sizes_are_those_that_the_towers_ask_for(kind, monkeypatch):
    config = dataclasses.replace(quickstart().model, kind=kind)
    asked = set()

    def choose(plain, query, key, *, causal, valid_first=False):
        asked.add((query.shape[1], key.shape[1], query.shape[-1], causal))
        return plain

    monkeypatch.setattr(transformer, "choose_kernel", choose)
    jax.eval_shape(lambda: make_model(config).init(jax.random.key(0), example_batch(config, tokens=40)))
    assert asked == {tuple(sizes) for sizes in tower_attention._sizes(config, 40).values()}


def test_the_names_on_each_platform():
    half = quickstart(dtype="bfloat16", vit__heads=1, vit__width=160).model  # a head too wide for cuDNN
    flash = "cuDNN flash attention"
    assert tower_kernels(half, 64, "gpu") == {"vit": "plain", "perceiver": flash, "llm": flash}
    assert set(tower_kernels(half, 64, "tpu").values()) == {"plain"}
    assert tower_kernels(half, 2048, "tpu")["llm"] == "splash attention"
    assert set(tower_kernels(quickstart().model, 64, "gpu").values()) == {"plain"}
