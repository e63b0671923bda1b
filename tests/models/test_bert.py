import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import (
    assert_close,
    copied_params,
    parameter_count,
    random_params,
    randomise,
    record,
    run,
    torch_parameter_count,
)

from sail_jax.config.model import BertConfig
from sail_jax.convert import weight_map
from sail_jax.errors import SailError
from sail_jax.models.bert import Bert

CONFIG = BertConfig(vocab_size=61, width=32, layers=3, heads=4, mlp_width=48, max_positions=16, token_types=2)
LENGTH = 11
MASK = np.array([[1] * 11, [1] * 7 + [0] * 4, [0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1]], bool)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=MASK.shape).astype(np.int32)


def reference(config):
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.max_positions,
            type_vocab_size=config.token_types,
            layer_norm_eps=config.norm_eps,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )


def drawn(config=CONFIG, **fields):
    model = Bert(config, **fields)
    return model, random_params(model, TOKENS, MASK)


def test_matches_transformers_layer_by_layer():
    model = randomise(reference(CONFIG))
    embedded, layers = record([model.embeddings]), record(model.encoder.layer)
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS), torch.tensor(MASK.astype(np.int64))).last_hidden_state.numpy()

    ours = Bert(CONFIG, keep_layers=True)
    hidden, out = run(ours, copied_params(ours, weight_map.bert(CONFIG), model, TOKENS, MASK), TOKENS, MASK)
    assert hidden.shape == (*TOKENS.shape, CONFIG.width)
    assert_close(out.embedded, embedded[0])
    for layer, expected in zip(out.layers, layers, strict=True):
        assert_close(layer, expected)
    assert_close(hidden, theirs)


@pytest.mark.slow
def test_gradients_match_transformers():
    model = randomise(reference(CONFIG))
    weights = np.random.default_rng(1).normal(size=(*TOKENS.shape, CONFIG.width)).astype(np.float32)
    weights *= MASK[..., None]
    hidden = model(torch.tensor(TOKENS), torch.tensor(MASK.astype(np.int64))).last_hidden_state
    (hidden * torch.tensor(weights)).sum().backward()

    ours = Bert(CONFIG, remat="dots")
    variables = copied_params(ours, weight_map.bert(CONFIG), model, TOKENS, MASK)
    loss = jax.jit(jax.grad(lambda v: jnp.sum(run(ours, v, TOKENS, MASK)[0] * weights)))
    gradients = loss(variables)["params"]
    assert_close(gradients["position_embedding"], model.embeddings.position_embeddings.weight.grad, 1e-4)
    assert_close(gradients["type_embedding"], model.embeddings.token_type_embeddings.weight.grad, 1e-4)
    for index, layer in enumerate(model.encoder.layer):
        attention, mlp = gradients["layers"]["attention"], gradients["layers"]["mlp"]
        assert_close(attention["key"]["kernel"][index].T, layer.attention.self.key.weight.grad, 1e-4)
        assert_close(mlp["up"]["kernel"][index].T, layer.intermediate.dense.weight.grad, 1e-4)


def test_padding_changes_nothing():
    model, variables = drawn()
    hidden, out = run(model, variables, TOKENS, MASK)
    other, _ = run(model, variables, np.where(MASK, TOKENS, 5), MASK)
    np.testing.assert_array_equal(hidden[MASK], other[MASK])
    short, _ = run(model, variables, TOKENS[1:2, :7], MASK[1:2, :7])
    np.testing.assert_allclose(hidden[1, :7], short[0], atol=1e-5)
    assert out.layers is None


def test_no_valid_token_gives_finite_values():
    model, variables = drawn()
    assert np.isfinite(run(model, variables, TOKENS, np.zeros_like(MASK))[0]).all()


def test_a_token_beyond_the_table_shows():
    model, variables = drawn()
    hidden, _ = run(model, variables, np.where(np.arange(LENGTH) == 2, CONFIG.vocab_size, TOKENS), MASK)
    assert np.isnan(hidden[0]).all()


def test_bfloat16_stays_close_to_float32():
    model, variables = drawn()
    expected, _ = run(model, variables, TOKENS, MASK)
    hidden, _ = run(Bert(CONFIG, dtype="bfloat16"), variables, TOKENS, MASK)
    assert hidden.dtype == jnp.bfloat16
    assert_close(hidden.astype(jnp.float32), expected, tolerance=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_positions": 10}, "11 tokens; model.bert.max_positions allows 10"),
        ({"heads": 5}, "model.bert.width is 32"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(SailError, match=message):
        jax.eval_shape(Bert(dataclasses.replace(CONFIG, **changes)).init, jax.random.key(0), TOKENS, MASK)


def test_full_size_has_the_parameters_of_transformers():
    tokens, mask = (jax.ShapeDtypeStruct((1, 512), dtype) for dtype in (jnp.int32, jnp.bool_))
    expected = torch_parameter_count(lambda: transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False))
    assert parameter_count(Bert(BertConfig()), tokens, mask) == expected == 108_891_648
