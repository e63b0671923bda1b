import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from sail_jax.config.model import BertConfig
from sail_jax.models import transformer
from sail_jax.models.bert import Bert
from sail_jax.models.packing import Packing


def test_a_mask_of_another_length_than_the_tokens_is_refused():
    config = BertConfig(vocab_size=11, width=8, layers=1, heads=2, mlp_width=12, max_positions=8)
    tokens, mask = jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 4), bool)
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        jax.eval_shape(Bert(config).init, jax.random.key(0), tokens, mask)


def test_keys_of_another_head_width_than_the_queries_are_refused():
    query, key = jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4, 2, 6))
    with pytest.raises(TypeCheckError, match="parameter 'key'"):
        transformer.attend(query, key, key)


def test_a_packing_of_unequal_groups_is_refused():
    with pytest.raises(TypeCheckError, match="parameter 'slot_of'"):
        Packing(jnp.zeros((2, 6), jnp.int32), jnp.zeros((3, 4), jnp.int32), 3)
