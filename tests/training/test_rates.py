"""The learning rate of each parameter, against optax's own optimisers with updates scaled by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sail_jax import config as config_lib
from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.training.optimizer import OptimizerValues, make_optimizer
from sail_jax.training.rates import Rates, check_rates, factors, weight_decay_mask

SHAPES = {
    "model/llm/embedding": (6, 4),
    "model/llm/layers/mlp/up/kernel": (3, 4, 8),
    "model/llm/layers/mlp_norm/scale": (3, 4),
    "model/llm/final_norm/scale": (4,),
    "model/vit/layers/mlp/up/kernel": (2, 4, 8),
    "model/audio/patch_embed/kernel": (4, 4),
    "model/audio/stages_0/blocks_0/mlp/up/kernel": (4, 8),
    "model/audio/stages_0/blocks_1/mlp/up/kernel": (4, 8),
    "model/audio/stages_0/merge/kernel": (8, 8),
    "model/audio/stages_1/blocks_0/mlp/up/kernel": (4, 8),
    "model/audio/projection/up/kernel": (4, 8),
    "model/perceiver/layers/mlp/up/kernel": (2, 4, 8),
    "lora/vit/layers/mlp/up/kernel_a": (2, 4, 2),
    "objective/log_temperature": (2,),
}
RATES = {r"^vit/.*kernel$": 0.5, r"^(vit|llm)/": 0.1}


def drawn(seed):
    rng = np.random.default_rng(seed)
    flat = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    return unflatten_dict(flat, sep="/")


def flat_factors(config):
    return flatten_dict(factors(config, Rates.of(config), drawn(0)), sep="/")


def test_the_first_pattern_decides_and_an_adapter_has_the_rate_of_its_matrix():
    found = flat_factors(OptimizerConfig(rates=RATES, temperature_rate=7.0))
    assert found["model/vit/layers/mlp/up/kernel"] == found["lora/vit/layers/mlp/up/kernel_a"] == np.float32(0.5)
    assert found["model/llm/embedding"] == np.float32(0.1)
    assert found["model/perceiver/layers/mlp/up/kernel"] == 1 and found["objective/log_temperature"] == 7


def test_layers_decay_from_the_top_of_their_tower_to_its_embeddings():
    found = flat_factors(OptimizerConfig(layer_decay=0.5, rates={r"^llm/": 10.0}))
    np.testing.assert_allclose(found["model/llm/layers/mlp/up/kernel"].ravel(), [1.25, 2.5, 5.0])
    assert found["model/llm/layers/mlp_norm/scale"].shape == (3, 1)
    assert [float(found[f"model/llm/{name}"]) for name in ("embedding", "final_norm/scale")] == [0.625, 10.0]
    np.testing.assert_allclose(found["lora/vit/layers/mlp/up/kernel_a"].ravel(), [0.25, 0.5])
    audio = {name.removeprefix("model/audio/"): float(found[name]) for name in found if "/audio/" in name}
    assert audio == {
        "patch_embed/kernel": 0.0625,
        "stages_0/blocks_0/mlp/up/kernel": 0.125,
        "stages_0/blocks_1/mlp/up/kernel": 0.25,
        "stages_0/merge/kernel": 0.25,
        "stages_1/blocks_0/mlp/up/kernel": 0.5,
        "projection/up/kernel": 1.0,
    }
    assert found["model/perceiver/layers/mlp/up/kernel"] == 1.0


def plain(name, mask):
    """The optimiser as optax writes it, with this package's choices."""
    if name == "adamw":
        return optax.adamw(1.0, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, mask=mask)
    if name == "lion":
        return optax.lion(1.0, b1=0.8, b2=0.95, weight_decay=0.1, mask=mask)
    if name == "adafactor":
        return optax.adafactor(
            1.0, multiply_by_parameter_scale=False, momentum=0.8, weight_decay_rate=0.1, weight_decay_mask=mask
        )
    # Matrices of layers one by one, without weight decay.
    return optax.contrib.muon(1.0, beta=0.8, eps=1e-6, adam_b1=0.8, adam_b2=0.95, consistent_rms=0.2)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_updates_are_those_of_optax_scaled_by_hand(name):
    config = OptimizerConfig(
        name=name,
        rates=RATES,
        layer_decay=0.5,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
        weight_decay_mask={r"final_norm": True, r"^vit/": False},
        clip_norm=1e9,
    )
    params, gradient = drawn(1), drawn(2)
    mask = weight_decay_mask(config, params)
    decays = {name for name, decays in flatten_dict(mask, sep="/").items() if decays}
    assert decays >= {"model/llm/embedding", "model/llm/final_norm/scale", "model/llm/layers/mlp/up/kernel"}
    assert not decays & {"model/llm/layers/mlp_norm/scale", "objective/log_temperature"}
    assert not any("/vit/" in name for name in decays)
    ours, theirs = make_optimizer(config), plain(name, mask)
    scale = factors(config, Rates.of(config), params)

    @jax.jit
    def two_steps(values):
        states, updates = (ours.init(params), theirs.init(params)), (None, None)
        for _ in range(2):
            given = make_optimizer(config, values).update(gradient, states[0], params)
            expected = theirs.update(gradient, states[1], params)
            states, updates = (given[1], expected[1]), (given[0], expected[0])
        return updates[0], jax.tree.map(jnp.multiply, updates[1], scale)

    given, expected = (flatten_dict(tree, sep="/") for tree in two_steps(OptimizerValues.of(config)))
    for name, update in expected.items():
        np.testing.assert_allclose(given[name], update, rtol=2e-4, atol=1e-6, err_msg=name)


def test_muon_takes_the_matrices_of_layers_one_by_one_and_adamw_the_rest():
    config = OptimizerConfig(name="muon", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, clip_norm=1e9)
    params, gradient = drawn(1), drawn(2)
    mask = flatten_dict(weight_decay_mask(config, params), sep="/")

    def unstacked(tree):
        flat = flatten_dict(tree, sep="/")
        alone = {name: leaf for name, leaf in flat.items() if leaf.ndim != 2 and "/layers/" not in name}
        hidden = {name: leaf for name, leaf in flat.items() if "blocks_" in name}
        for name, leaf in flat.items():
            if "/layers/" in name and leaf.ndim == 3 and name.endswith("kernel"):
                hidden |= {f"{name}[{at}]": part for at, part in enumerate(leaf)}
        return alone | hidden  # one-dimensional ones, and matrices of layers

    ours, theirs = make_optimizer(config), plain("muon", None)

    @jax.jit
    def one_step():
        given = ours.update(gradient, ours.init(params), params)[0]
        alone = unstacked(params)
        return unstacked(given), theirs.update(unstacked(gradient), theirs.init(alone), alone)[0]

    given, expected = one_step()
    for name, leaf in unstacked(params).items():
        decayed = expected[name] - 0.1 * leaf * mask[name.partition("[")[0]]
        np.testing.assert_allclose(given[name], decayed, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": {r"^vti/": 0.1}}, r"optimizer\.rates: '\^vti/' is found in no path.*vit/layers"),
        ({"rates": {r"^vit/": -0.1}}, r"rates\['\^vit/'\] is -0\.1.*freeze"),
        ({"weight_decay_mask": {r"nrom": True}}, r"optimizer\.weight_decay_mask: 'nrom'"),
    ],
)
def test_wrong_tables_are_explained(settings, message):
    with pytest.raises(SailError, match=message):
        check_rates(OptimizerConfig(**settings), drawn(0))


def test_patterns_keep_their_order_and_their_dots(tmp_path):
    values = config_lib.default_config()
    values.optimizer.rates = RATES | {r"^a.*": 2}
    config = config_lib.build(values)
    config_lib.save(config, tmp_path / "config.json")
    for found in (config, config_lib.load(tmp_path / "config.json")):
        assert list(found.optimizer.rates.items()) == [*RATES.items(), (r"^a.*", 2.0)]
