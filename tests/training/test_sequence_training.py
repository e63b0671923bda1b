"""Sequence-to-item training: against brute force, on meshes, in micro-batches, through the ring."""

import itertools
from collections import Counter

import jax
import numpy as np
import pyarrow as pa
import pytest
from flax.traverse_util import flatten_dict
from mesh_steps import assert_same, call, encode, run_steps, untrained

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.curation.mining.dataset import mine_dataset
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.collate import as_halves
from sail_jax.data.pipeline import BatchSource, HostShare, make_extractor, open_store
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.store import ItemStore
from sail_jax.data.training_set import materialize
from sail_jax.data.views import side_views
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.items import item_key
from sail_jax.models.model import init_params, make_model
from sail_jax.objectives.objective import make_objective
from sail_jax.objectives.ring_contrast import RingContrast
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import first_match, frozen_rules

LENGTH = 4


@pytest.fixture(scope="module")
def table(world, tmp_path_factory):
    """64 sequences of 2 to 5 of a few items, so that many items are shared."""
    ids = sorted(itertools.islice(ItemStore.open(world / "items").item_ids(), 24))
    rng = np.random.default_rng(3)
    rows = []
    for number in range(64):
        items = [ids[i] for i in rng.choice(24, rng.integers(3, 7), replace=False)]
        rows.append(
            {
                "user_id": f"u{number % 40}",
                "item_ids": items[:-2],
                "target_id": items[-1],
                "seen_ids": [items[-2]],
                "split": "train",
            }
        )
    path = tmp_path_factory.mktemp("sequences") / "sequences.parquet"
    write_sequences(path, [pa.Table.from_pylist(rows)])
    return path


def sequences(settings, table, **changes):
    settings.data.datasets = {
        "histories": {
            "kind": "sequences",
            "table": str(table),
            "patterns": ("O->O", "T->T"),
            "history": LENGTH,
            "seen": 6,
        }
    }
    settings.data.datasets["histories"].update(changes)
    return settings


@pytest.mark.slow
def test_the_loss_equals_brute_force(settings, table):
    """Each item encoded on its own, in a batch of pairs; scores, masks and the correction of targets written out."""
    settings = sequences(settings, table, patterns=("O->O",), distinct_items=4, correct_popularity=0.8)
    settings.objective.matryoshka = (32,)
    config = config_lib.build(settings)
    objective, params = untrained(config)
    source = BatchSource(config, HostShare(0, 16, 1))
    loaded = source[0]
    assert loaded.arrays.tokens.shape[1] == 4 and loaded.items_cut == 0
    recipe = objective.recipe(loaded.datasets)
    z, out = encode(make_model(config.model), params["model"], loaded.arrays, recipe.views)
    loss, metrics = call(objective, params["objective"], z, out, loaded.arrays, recipe)

    rows = [source._sets[0].sequence(number) for _, number in source.examples(0)]
    wanted = {item for row in rows for item in [*row.item_ids, row.target_id]}
    vector = _vectors(config, params["model"], wanted)
    query = np.stack([np.mean([vector[i] for i in row.item_ids[-LENGTH:]], 0) for row in rows])
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    target = np.stack([vector[row.target_id] for row in rows])
    scores = query @ target.T / config.objective.temperature
    negative = np.array([[_may_be_negative(left, right, rows) for right in rows] for left in rows])
    times = Counter(source._sets[0].table[i].target_id for i in range(64))
    corrected = scores - 0.8 * np.log([times[row.target_id] / 64 for row in rows])
    assert len(set(times.values())) > 2
    there = []
    for logits, mask in ((corrected, negative), (scores.T, negative.T)):  # each history comes once
        shown = np.where(mask | np.eye(len(rows), dtype=bool), logits, -np.inf)
        there.append(np.log(np.exp(shown).sum(1)) - np.diag(logits))
    np.testing.assert_allclose(loss, np.mean(there), rtol=1e-4)
    assert not negative.all() and metrics["valid_pairs"] == 16


def _embed(embedder, config, ids):
    store, view = open_store(config), side_views(config, "histories")[0]
    return np.concatenate([z[0] for z, _ in embedder.stream([store.get(i) for i in ids], view, ("O",))])


def _vectors(config, params, wanted):
    embedder = Embedder(config, params, make_extractor(config), make_mesh(MeshConfig(), jax.devices()[:1]))
    ids = sorted(wanted)
    z = _embed(embedder, config, ids)
    return dict(zip(ids, z / np.linalg.norm(z, axis=1, keepdims=True), strict=True))


def _may_be_negative(left, right, rows):
    """Returns whether an item is a negative: no target of the same user, and not seen by the user."""
    own = {row.target_id for row in rows if row.user_id == left.user_id}
    return right.target_id not in own | {*left.seen_ids, *left.item_ids} and left.user_id != right.user_id


@pytest.mark.slow
def test_meshes_micro_batches_and_the_ring_change_nothing(settings, table):
    """With the encoder of histories; their mean is taken of the same vectors, in the same place."""
    settings = sequences(settings, table, patterns=("O->O", "T->T"))
    settings.model.sequence.update(pooling="transformer", layers=2, heads=2, mlp_width=16)
    config = config_lib.build(settings)
    whole = run_steps(config, (1, 1, 1))
    assert whole[0][0]["loss"] > 0
    split = config_lib.to_dict(config)
    split["train"]["micro_batches"] = 2
    split["model"]["media_chunk"] = 1
    found = run_steps(config_lib.build(split), (2, 2, 1), lambda mesh: RingContrast(mesh, 3))
    for metrics in (*found[0], *whole[0]):  # each shard holds an item of its sequences once, so means over items differ
        for name in [name for name in metrics if name.startswith("scale/")]:
            del metrics[name]
    assert_same(found, whole)


def test_an_item_of_several_sequences_is_encoded_once(settings, table):
    config = config_lib.build(sequences(settings, table, distinct_items=2, correct_popularity=1.0))
    loaded = BatchSource(config, HostShare(0, 16, 1))[0]
    keys = {(a, b) for a, b in loaded.arrays.seen_keys.reshape(-1, 2).tolist()}
    assert loaded.arrays.tokens.shape[1] == 2 and len(keys) > 16
    assert loaded.items_cut == 0  # 24 items in 32 places
    shapes = batch_shapes(config, ("histories",), 1)
    assert shapes.members.shape == loaded.arrays.members.shape
    assert shapes.log_frequency.shape == loaded.arrays.log_frequency.shape


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "transformer"])
def test_an_embedder_pools_as_training_does(settings, table, pooling):
    settings = sequences(settings, table, patterns=("O->O",), distinct_items=4)
    settings.model.sequence.update(pooling=pooling, layers=1, heads=2, mlp_width=16)
    config = config_lib.build(settings)
    params = init_params(config.model, 3)
    source, recipe = BatchSource(config, HostShare(0, 16, 1)), make_objective(config).recipe((0,))
    (z, targets), _ = encode(make_model(config.model), params, source[0].arrays, recipe.views)
    rows = [source._sets[0].sequence(number) for _, number in source.examples(0)]
    ids = sorted({item for row in rows for item in [*row.item_ids, row.target_id]})
    embedder = Embedder(config, params, make_extractor(config), make_mesh(MeshConfig(), jax.devices()[:1]))
    vectors = _embed(embedder, config, ids)
    pooled = embedder.pool(vectors, [np.array([ids.index(i) for i in row.item_ids[-LENGTH:]]) for row in rows])
    np.testing.assert_allclose(z[0], pooled, atol=1e-4)
    np.testing.assert_allclose(targets[0][:, 0], vectors[[ids.index(row.target_id) for row in rows]], atol=1e-4)


def test_the_items_of_a_history_are_never_its_negatives(settings, table):
    config = config_lib.build(sequences(settings, table, seen=0))
    source = BatchSource(config, HostShare(0, 16, 1))
    keys = source[0].arrays.seen_keys
    for row, (_, number) in enumerate(source.examples(0)):
        shown = source._sets[0].sequence(number).item_ids[-LENGTH:]
        found = {tuple(key) for key in keys[row].tolist()}
        assert found >= {tuple(key) for key in as_halves([item_key(item) for item in shown]).tolist()}


def test_sequences_are_neither_mined_nor_materialized(settings, table, tmp_path):
    config = config_lib.build(sequences(settings, table))
    store = open_store(config)
    with pytest.raises(SailError, match="of kind 'sequences'"):
        materialize(config, "histories", tmp_path / "records", store, epochs=1)
    with pytest.raises(SailError, match="of kind 'sequences'"):
        mine_dataset(None, config, store, "histories", tmp_path / "hard.parquet")


def test_the_sequence_encoder_is_trained_with_adapters(settings):
    settings.model.sequence.update(pooling="transformer", heads=2)
    settings.lora.rank = 2
    config = config_lib.build(settings)
    names = list(flatten_dict(jax.eval_shape(lambda: init_params(config.model, 0)), sep="/"))
    rules = frozen_rules(config, names)
    assert {first_match(rules, name) for name in names if name.startswith("sequence/")} == {False}
    assert first_match(rules, "llm/final_norm/scale")


def test_sequences_ask_for_one_side_as_for_the_other(settings, table):
    config = config_lib.build(sequences(settings, table, patterns=("T->O",)))
    with pytest.raises(SailError, match="O->O"):
        BatchSource(config, HostShare(0, 16, 1))
