"""The dual tower by hand out of its towers, and its training; test_fusion.py holds what both kinds of model share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import torch
from jax.sharding import PartitionSpec
from parity import assert_close, copy_weights, randomise
from test_bert import reference
from test_fusion import B, S, drawn_params, forward, make_batch, tiny_model

from sail_jax import config as config_lib
from sail_jax.batch import Batch, TokenType
from sail_jax.config.model import ModelConfig
from sail_jax.config.training import MeshConfig
from sail_jax.convert import weight_map
from sail_jax.errors import SailError
from sail_jax.models.clap import ClapAudio
from sail_jax.models.model import example_batch, init_params, make_model
from sail_jax.models.vit import Vit
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import WEIGHT_DECAY, first_match, partition_spec
from sail_jax.vectors.unit import normalize

pytestmark = pytest.mark.slow

CONFIG = tiny_model("dual_tower")
VIEWS = ("VTA", "T", "VT", "A", "O")
ITEMS = B * S


@pytest.fixture(scope="module")
def batch():
    """Item 3 has no frame, item 5 no sound, item 6 no text, and item 7 nothing at all."""
    batch = make_batch(CONFIG)
    types = batch.token_types.reshape(ITEMS, -1).copy()
    for item in (6, 7):
        types[item][types[item] == TokenType.TEXT] = TokenType.PAD
    return batch._replace(
        token_types=types.reshape(batch.token_types.shape),
        tokens=np.where(types == TokenType.PAD, 400, batch.tokens.reshape(ITEMS, -1)).reshape(batch.tokens.shape),
        frame_item=np.where(np.isin(batch.frame_item, (3, 7)), -1, batch.frame_item),
        clip_item=np.where(np.isin(batch.clip_item, (5, 7)), -1, batch.clip_item),
    )


@pytest.fixture(scope="module")
def bert():
    """A BertModel of transformers with random weights."""
    return randomise(reference(CONFIG.bert))


@pytest.fixture(scope="module")
def params(bert):
    params = drawn_params(CONFIG)
    shapes = jax.eval_shape(lambda: params["bert"])
    return params | {"bert": copy_weights(weight_map.bert(CONFIG.bert), bert.state_dict(), shapes)}


def adapted(params, part, vector):
    return np.asarray(vector) @ params[part]["kernel"] + params[part]["bias"]


@pytest.fixture(scope="module")
def by_hand(batch, bert, params):
    """Modality -> item -> its vector, item by item, without masks, slots or padding."""
    vectors = {"V": {}, "T": {}, "A": {}}
    patches = jax.jit(lambda x: Vit(CONFIG.vit).apply({"params": params["vit"]}, x)[0])(batch.frames)
    clips = jax.jit(lambda x: ClapAudio(CONFIG.audio).apply({"params": params["audio"]}, x)[0])(batch.clips)
    types, tokens = (x.reshape(ITEMS, -1) for x in (batch.token_types, batch.tokens))
    for item in range(ITEMS):
        frames = np.asarray(patches)[batch.frame_item == item]
        if len(frames):
            vectors["V"][item] = adapted(params, "vision_adapter", frames.reshape(-1, frames.shape[-1]).mean(axis=0))
        if item in batch.clip_item:
            sound = np.asarray(clips)[batch.clip_item == item].mean(axis=0)
            assert CONFIG.audio.normalize
            vectors["A"][item] = adapted(params, "audio_adapter", sound / np.sqrt(np.mean(sound**2)))
        if TokenType.TEXT in types[item]:
            text = tokens[item][np.isin(types[item], (TokenType.TEXT, TokenType.PROMPT))]
            with torch.no_grad():
                hidden = bert(torch.tensor(text[None])).last_hidden_state[0].numpy()
            vectors["T"][item] = adapted(params, "text_adapter", hidden.mean(axis=0))
    return vectors


def whole(of_sides):
    """[V, B, S, ...] of all sides."""
    query, target = of_sides
    return np.concatenate([np.asarray(query)[:, :, None], target], axis=2)


def test_values_are_those_of_the_towers_by_hand(batch, params, by_hand):
    """Items 1 and 5 have the media of the items before them."""
    media_item = np.array([0, 0, 2, 3, 4, 4, *range(6, ITEMS)], np.int32)
    for letter in "VA":
        of_first = {item: by_hand[letter].get(first) for item, first in enumerate(media_item.tolist())}
        by_hand = by_hand | {letter: {item: vector for item, vector in of_first.items() if vector is not None}}
    z, out = forward(CONFIG, params, batch._replace(media_item=media_item.reshape(B, S)), (VIEWS, VIEWS))
    z, filled, (visual, textual, encoded) = whole(z), whole(out.filled), map(whole, out.parts)
    assert z.dtype == np.float32 and out.mask is None and out.hidden is None
    expected = {name: np.zeros((len(VIEWS), ITEMS, CONFIG.llm.width), np.float32) for name in ("z", "V", "T")}
    for number, view in enumerate(VIEWS):
        for item in range(ITEMS):
            shown = {
                letter: vectors[item]
                for letter, vectors in by_hand.items()
                if item in vectors and (letter in view or view == "O")
            }
            units = [vector / np.linalg.norm(vector) for vector in shown.values()]
            if units:
                expected["z"][number, item] = np.mean(units, axis=0)
            for letter in "VT":
                expected[letter][number, item] = shown.get(letter, 0)
            asked = {letter for letter in "VTA" if letter in view}
            assert filled[number].reshape(-1)[item] == (asked <= set(shown) if asked else bool(shown))
    for name, values in (("z", z), ("V", visual), ("T", textual), ("V", encoded)):
        assert_close(values.reshape(expected[name].shape), expected[name])
    for values, letter in ((out.vision, "V"), (out.audio, "A")):
        vectors = [by_hand[letter].get(item, np.zeros(CONFIG.llm.width)) for item in range(ITEMS)]
        assert_close(values.reshape(ITEMS, -1), vectors)
    assert not np.any(z[:, 3, 1]) and not np.any(z[1, 3, 0])


def test_media_positions_leave_no_gap_in_the_text(batch, params):
    """The text tower reads what it would read if no position had been kept for media."""
    other = batch.token_types.copy()
    moved, tokens = np.zeros_like(other), np.zeros_like(batch.tokens)
    for pair, side in np.ndindex(B, S):
        at = np.flatnonzero(np.isin(other[pair, side], (TokenType.TEXT, TokenType.PROMPT)))
        moved[pair, side, -len(at) :], tokens[pair, side, -len(at) :] = (
            other[pair, side, at],
            batch.tokens[pair, side, at],
        )
    expected, _ = forward(CONFIG, params, batch, (VIEWS, VIEWS))
    z, _ = forward(CONFIG, params, batch._replace(token_types=moved, tokens=tokens), (VIEWS, VIEWS))
    assert_close(whole(z), whole(expected))


def test_every_modality_of_unit_length_has_the_same_say(batch, params):
    """Twice the vector of one tower changes nothing."""
    louder = params | {"vision_adapter": jax.tree.map(lambda x: 2 * x, params["vision_adapter"])}
    expected, _ = forward(CONFIG, params, batch, (VIEWS, VIEWS))
    assert_close(whole(forward(CONFIG, louder, batch, (VIEWS, VIEWS))[0]), whole(expected))


@functools.partial(jax.jit, static_argnames="views")
def gradients(params, batch, views, weights):
    """Gradients of a function of the embeddings, each view weighted, and the embeddings."""

    def loss(params):
        z, _ = make_model(CONFIG).apply({"params": params}, batch, views)
        directions = [(normalize(part) * jnp.arange(part.shape[-1])).sum(range(1, part.ndim)) for part in z]
        return sum((direction * weights[: len(direction)]).sum() for direction in directions), z

    return jax.grad(loss, has_aux=True)(params)


def test_gradients_are_finite_and_reach_what_is_shown(batch, params):
    parts = {"V": ("vit", "vision_adapter"), "T": ("bert", "text_adapter"), "A": ("audio", "audio_adapter")}
    views = ("VTA", "T", "VA")
    for number, view in enumerate(views):
        found, _ = gradients(params, batch, (views, views), np.eye(3, dtype=np.float32)[number])
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
        for part, tower in found.items():
            moved = [np.any(leaf) for leaf in jax.tree.leaves(tower)]
            shown = any(part in parts[letter] for letter in view)
            assert (sum(moved) > len(moved) / 2) if shown else not any(moved), (view, part)


def test_hard_negatives_and_gradients_of_a_batch_without_media(params):
    batch = make_batch(CONFIG, sides=3)
    bare = batch._replace(
        frames=batch.frames[:0],
        frame_item=batch.frame_item[:0],
        frame_slot=batch.frame_slot[:0],
        clips=batch.clips[:0],
        clip_item=batch.clip_item[:0],
    )
    views = (("O",), ("T", "V"))
    found, (query, target) = gradients(params, bare, views, np.ones(2, np.float32))
    assert query.shape == (1, B, 32) and target.shape == (2, B, 2, 32)
    assert np.any(target[0], axis=-1).all() and not np.any(target[1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_training_lowers_a_contrastive_loss():
    """Pairs of random items come together, from fresh parameters."""
    batch, optimizer = jax.device_put(make_batch(CONFIG)), optax.adam(3e-3)

    def loss(params):
        (query, target), _ = make_model(CONFIG).apply({"params": params}, batch)
        scores = normalize(query[0]) @ normalize(target[0, :, 0]).T / 0.1
        return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(B)).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = init_params(CONFIG, 0)
    state, losses = optimizer.init(params), []
    for _ in range(12):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0] and np.all(np.isfinite(losses))


def test_a_text_beyond_the_positions_is_refused(params):
    short = dataclasses.replace(CONFIG, bert=dataclasses.replace(CONFIG.bert, max_positions=8))
    with pytest.raises(SailError, match="model.bert.max_positions allows 8"):
        forward(short, params, make_batch(CONFIG), (("T",), ("T",)))


def test_full_size_builds_and_embeds_abstractly():
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py", ["model.kind=dual_tower"])
    shapes = jax.eval_shape(lambda: init_params(config.model, 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["bert"])) == 108_891_648  # of BERT base without a pooler
    assert shapes["text_adapter"]["kernel"].shape == (768, 1536)
    assert config.model.text_vocab == 30_522 and ModelConfig().text_vocab == 151_936
    batch: Batch = example_batch(config.model, pairs=2, tokens=config.prompt.max_tokens)
    (query, target), out = jax.eval_shape(
        lambda params, batch: make_model(config.model).apply({"params": params}, batch), shapes, batch
    )
    assert query.shape == (1, 2, 1536) and target.shape == (1, 2, 1, 1536)
    assert out.vision.shape == (4, 1, 1536) and out.audio.shape == (4, 1536)


def test_the_tables_of_bert_are_split_and_decay_as_those_of_the_llm():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    name = "model/bert/word_embedding"
    assert partition_spec(name, (512, 32), mesh) == PartitionSpec("tensor", "fsdp")
    assert partition_spec("model/bert/position_embedding", (96, 32), mesh) == PartitionSpec(None, None)
    decays = {
        table: first_match(WEIGHT_DECAY, f"model/bert/{table}_embedding") for table in ("word", "position", "type")
    }
    assert decays == {"word": True, "position": False, "type": False}
