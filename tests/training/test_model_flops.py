"""The operations of the model: the same, however a step saves memory."""

import pytest

from sail_jax import config as config_lib
from sail_jax.models.model import abstract_params
from sail_jax.objectives.objective import make_objective
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.model_flops import model_flops


@pytest.mark.slow
def test_what_is_repeated_does_not_count(settings):
    """With only text, since tracing the other towers takes long."""
    settings.data.datasets = {"copair": settings.data.datasets.copair.to_dict() | {"patterns": ("T->T",)}}

    def count():
        config = config_lib.build(settings)
        objective = make_objective(config)
        params = {"model": abstract_params(config, make_mesh(config.mesh)), "objective": objective.init()}
        return model_flops(config, ["copair"], params, objective.recipe([0]), shards=2)

    plain = count()
    layer = settings.model.llm
    matrices = layer.width * layer.head_dim * (2 * layer.heads + 2 * layer.kv_heads) + 3 * layer.width * layer.mlp_width
    tokens = 2 * settings.data.batch_size * settings.prompt.max_tokens
    assert plain > 3 * 2 * layer.layers * matrices * tokens  # forward, and twice that backward
    settings.model.update(remat="full", media_chunk=2)
    settings.train.micro_batches = 2
    assert count() == plain
