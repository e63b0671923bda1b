"""Small batches of pairs, and values and gradients of our losses and of those of sentence-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from sail_jax.config.model import ModelConfig
from sail_jax.models.model import example_batch
from sail_jax.objectives.negative_masks import Negatives, find_negatives
from sail_jax.patterns import Pattern

B, M, D = 12, 3, 32
ALL = Negatives(~jnp.eye(B, dtype=bool), jnp.ones((B, B * M), bool))
VALID = jnp.ones(B, bool)
OMNI = Pattern("O", "O")


def value_and_grad(loss, argnums=0):
    """`jax.value_and_grad`, jitted: without jit, JAX would compile every operation separately."""
    return jax.jit(jax.value_and_grad(loss, argnums=argnums))


class Given(torch.nn.Module):
    """A stub of a model that returns given embeddings."""

    def forward(self, features):
        return features


def torch_loss(make, *sides, labels=None):
    """Returns value and gradients of a loss of sentence-transformers at given embeddings."""
    model = SentenceTransformer(modules=[Given()], device="cpu")
    tensors = [torch.tensor(np.array(x), requires_grad=True) for x in sides]
    value = make(model)([{"sentence_embedding": side} for side in tensors], labels)
    value.backward()
    return value.item(), [side.grad.numpy() for side in tensors]


def same(ours, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(ours[0], expected[0], rtol=rtol)
    for gradient, wanted in zip(ours[1], expected[1], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=atol)


def batch_of(*ids, texts=None, scores=None, dataset=None):
    """A batch whose sides have these ids (and texts): tuples of small numbers, one tuple a pair."""

    def keys(numbers):
        flat = np.array(numbers, np.uint32)
        return jnp.asarray(np.stack([np.zeros_like(flat), flat], axis=-1))

    pairs = len(ids)
    distinct = np.arange(np.size(ids)).reshape(np.shape(ids)) + 50_000
    return example_batch(ModelConfig())._replace(
        item_keys=keys(ids),
        text_keys=keys(distinct if texts is None else texts),
        valid=jnp.ones(np.shape(ids), bool),
        scores=jnp.full(pairs, jnp.nan) if scores is None else jnp.asarray(scores, jnp.float32),
        dataset=jnp.zeros(pairs, jnp.int32) if dataset is None else jnp.asarray(dataset, jnp.int32),
    )


masks_of = jax.jit(find_negatives, static_argnames=("pattern", "share_hard"))


def targets_mask(batch, pattern=OMNI):
    pairs = len(batch.valid)
    return masks_of(batch, pattern, batch.valid.all(-1), jnp.zeros((pairs, 0), bool)).targets


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)
