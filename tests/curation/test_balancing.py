"""Balancing: clusters and transport against plain references, and worlds with a known order of the sets."""

import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from sail_jax import config as config_lib
from sail_jax.config.curation import BalancingConfig
from sail_jax.curation.balancing import weights as balancing
from sail_jax.curation.balancing.report import BalancingResult, write_heat_map
from sail_jax.curation.balancing.samples import FUSED, sample_items, training_set
from sail_jax.curation.balancing.weights import Clusters, balance, centroids, sampling_weights, shared_kinds, similarity
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.sampling_weights import read_weights
from sail_jax.data.store import FOLDER, ItemStoreWriter
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.items import QUERY_FIELD, Item
from sail_jax.models.model import init_params
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.process_group import ALONE
from sail_jax.vectors.unit import unit_rows

# ------------------------------------------------------------------------------------------------------------ arrays


def rows_near(directions, per_direction, seed=0, noise=0.05):
    """Draws rows near some unit vectors, of different lengths, [n, D]."""
    rng = np.random.default_rng(seed)
    z = np.repeat(directions, per_direction, axis=0) + noise * rng.normal(
        size=(len(directions) * per_direction, directions.shape[1])
    )
    return (z * rng.uniform(0.5, 2, (len(z), 1))).astype(np.float32)


def random_clusters(k, seed, width=16):
    rng = np.random.default_rng(seed)
    return Clusters(unit_rows(rng.normal(size=(k, width))), rng.dirichlet(np.ones(k)))


def plain_sinkhorn(left, right, epsilon, iterations=3000):
    cost = 1 - left.centroids.astype(np.float64) @ right.centroids.T
    f, g = np.zeros(len(left.shares)), np.zeros(len(right.shares))
    log_a, log_b = np.log(left.shares)[:, None], np.log(right.shares)
    for _ in range(iterations):
        f = -epsilon * scipy.special.logsumexp((g - cost) / epsilon + log_b, axis=1)
        g = -epsilon * scipy.special.logsumexp((f[:, None] - cost) / epsilon + log_a, axis=0)
    return np.sum(np.exp((f[:, None] + g - cost) / epsilon + log_a + log_b) * (1 - cost))


def optimal_transport(left, right):
    cost = 1 - left.centroids.astype(np.float64) @ right.centroids.T
    rows, columns = cost.shape
    marginals = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    masses = np.concatenate([left.shares, right.shares])
    return 1 - scipy.optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=masses, bounds=(0, None)).fun


def test_centroids_find_the_clusters_and_their_shares(capfd):
    directions = np.eye(4, 8)
    z = np.concatenate([rows_near(directions[:1], 60), rows_near(directions[1:], 20), np.zeros((5, 8), np.float32)])
    found = centroids(z, 4, seed=3)
    nearest = np.argmax(found.centroids @ directions.T, axis=1)
    assert sorted(nearest) == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found.shares[np.argsort(nearest)], [0.5, 1 / 6, 1 / 6, 1 / 6])
    assert np.all(np.max(found.centroids @ directions.T, axis=1) > 0.99)
    assert capfd.readouterr() == ("", "")  # no warning of faiss about few points


def test_centroids_are_deterministic_and_see_all_points():
    z = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    first, second = centroids(z, 4, seed=1), centroids(z, 4, seed=1)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    np.testing.assert_array_equal(first.shares, second.shares)
    assert first.shares.sum() == pytest.approx(1)
    # A fixed point of spherical k-means, or nearly so after 25 rounds.
    label = np.argmax(unit_rows(z) @ first.centroids.T, axis=1)
    means = unit_rows(np.stack([unit_rows(z)[label == c].sum(axis=0) for c in range(4)]))
    assert np.all(np.sum(means * first.centroids, axis=1) > 0.99)


def test_fewer_distinct_rows_than_clusters():
    z = np.array([[2, 0], [1, 0], [0, 3], [0, 0], [-0.0, 1]], np.float32)
    found = centroids(z, 64, seed=0)
    order = np.argsort(found.centroids[:, 0])
    np.testing.assert_array_equal(found.centroids[order], [[0, 1], [1, 0]])
    np.testing.assert_array_equal(found.shares[order], [0.5, 0.5])
    assert len(centroids(z[:1], 64, seed=0).shares) == 1


def test_embeddings_that_are_not_finite_are_an_error():
    with pytest.raises(SailError, match="not finite"):
        centroids(np.array([[1, np.nan]], np.float32), 2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.01])
@pytest.mark.parametrize(("k", "other"), [(1, 4), (12, 5)])
def test_similarity_equals_a_plain_sinkhorn_and_padding_changes_nothing(k, other, epsilon):
    left, right = random_clusters(k, seed=k), random_clusters(other, seed=100 + other)
    unpadded = similarity(left, right, epsilon)
    assert unpadded == pytest.approx(plain_sinkhorn(left, right, epsilon), abs=2e-4)
    assert similarity(left, right, epsilon, size=16) == pytest.approx(unpadded, abs=1e-5)
    assert similarity(right, left, epsilon, size=16) == pytest.approx(unpadded, abs=2e-4)


def test_similarity_tends_to_the_optimal_transport_and_to_the_product():
    left, right = random_clusters(6, seed=0), random_clusters(9, seed=1)
    assert similarity(left, right, 0.002, size=16) == pytest.approx(optimal_transport(left, right), abs=1e-3)
    mean = left.shares @ left.centroids @ right.centroids.T @ right.shares
    assert similarity(left, right, 1e4, size=16) == pytest.approx(mean, abs=1e-3)


def test_similarities_of_one_size_compile_once():
    before = balancing._transported._cache_size()
    for k in (1, 2, 5, 19):
        similarity(random_clusters(k, seed=k), random_clusters(3, seed=9), 0.05 * k, size=19)
    assert balancing._transported._cache_size() == before + 1


def test_an_iteration_that_does_not_converge_is_an_error():
    with pytest.raises(SailError, match="config.balancing.epsilon = 1e-07: raise it"):
        similarity(random_clusters(12, seed=0), random_clusters(12, seed=1), 1e-7, size=16)


def test_the_more_clusters_coincide_the_closer_the_sets():
    directions = np.eye(12)
    target = centroids(rows_near(directions[:4], 50, seed=1), 8, seed=0)
    overlap = {4: directions[:4], 3: directions[1:5], 2: directions[2:6], 0: directions[6:10]}
    values = [
        similarity(centroids(rows_near(rows, 50, seed=2), 8, seed=0), target, 0.01, size=8) for rows in overlap.values()
    ]
    # Of four equal clusters, a cosine of one for those that coincide and of zero for the others.
    np.testing.assert_allclose(values, [1, 0.75, 0.5, 0], atol=0.05)


def test_weights_are_the_softmax_of_the_means():
    matrix = np.array([[0.9, 0.7], [0.4, np.nan], [np.nan, 0.8]])
    weights = sampling_weights(matrix, 0.1)
    np.testing.assert_allclose(weights, scipy.special.softmax(np.array([0.8, 0.4, 0.8]) / 0.1))
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(sampling_weights(matrix, 1e9), 1 / 3)
    np.testing.assert_allclose(sampling_weights(matrix, 1e-5), [0.5, 0, 0.5], atol=1e-6)


def test_weights_are_bit_equal_in_any_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix, rows, columns = rng.random((7, 5)), rng.permutation(7), rng.permutation(5)
        assert np.array_equal(sampling_weights(matrix, 0.05)[rows], sampling_weights(matrix[rows][:, columns], 0.05))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((FUSED, "V", "T", "A"), (FUSED, "T", "A"), (FUSED,)),
        ((FUSED, "V", "T"), ("T",), ("T",)),
        ((FUSED, "V", "T"), ("V", "T", "A"), ("V", "T")),
        (("V",), (FUSED, "T", "A"), ()),
    ],
)
def test_fusion_first(left, right, expected):
    sets = [dict.fromkeys(kinds, random_clusters(2, seed=0)) for kinds in (left, right)]
    assert shared_kinds(*sets) == shared_kinds(*sets[::-1]) == expected


# -------------------------------------------------------------------------------------------------------------- sets

TOPICS = 6


class StubEmbedder:
    """Embeds an item by the topic in its title or query; each modality rotates the vector a little."""

    width = TOPICS + 4
    processes = ALONE

    def __init__(self, config):
        self.config, self.seen = config, []

    def stream(self, items, view, views, *, batch_size=None):
        for item in (load() for load in items):
            self.seen.append((item.item_id or item.text[QUERY_FIELD], view))
            yield np.stack([self._vector(item, view, set(shown)) for shown in views])[:, None], {}

    def _vector(self, item, view, shown):
        shown &= set(item.modalities) & set(view.modalities)
        z = np.zeros(self.width, np.float32)
        if shown:
            topic = int((item.text.get("title") or item.text[QUERY_FIELD]).split()[1])
            rng = np.random.default_rng(zlib.crc32(item.item_id.encode()))
            z[:TOPICS] = 0.05 * rng.normal(size=TOPICS)
            z[topic] += 1
            for letter in shown:
                z[TOPICS + "VTA".index(letter)] = 0.3
        return z


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    """Writes a store of items of six topics, and tables of pairs, of queries, and of few rows."""
    root = tmp_path_factory.mktemp("topics")
    writer = ItemStoreWriter(root / FOLDER)
    full = [
        Item(f"{t}-{i}", {"title": f"topic {t} {i}"}, (b"jpeg",), b"flac") for t in range(TOPICS) for i in range(40)
    ]
    writer.write_shard(0, full)
    writer.finalize(1)
    pairs = {
        name: [Pair(f"{t}-{i}", None, f"{t}-{(i + 7) % 40}") for t in of for i in range(40)]
        for name, of in {"near": (0, 1), "half": (1, 2), "far": (4, 5), "tiny": (0,)}.items()
    }
    pairs["tiny"] = pairs["tiny"][:1]
    pairs["queries"] = [Pair(None, f"topic {t} words {i % 4}", f"{t}-{i}") for t in (0, 1) for i in range(40)]
    pairs["one"] = [Pair(None, f"topic 0 words {i}", "0-0") for i in range(60)]
    for name, rows in pairs.items():
        write_pairs(root / f"{name}.parquet", [(pair, "train") for pair in rows])
    return root


def experiment(root, datasets, tasks, **balancing):
    values = {
        "data": {"dir": str(root), "datasets": datasets},
        "eval": {"tasks": {name: {"split": "train"} | task for name, task in tasks.items()}},
        "balancing": {"samples": 60, "centroids": 8} | balancing,
    }
    return config_lib.build(values)


def table(name, **settings):
    return {"table": f"{name}.parquet"} | settings


DATASETS = {"far": table("far"), "near": table("near"), "half": table("half"), "tiny": table("tiny")}
TASKS = {"i2i": table("near"), "q2i": table("queries", query="T")}


def run(config, output):
    embedder = StubEmbedder(config)
    return balance(embedder, config, open_store(config), output), embedder


def test_the_closest_set_weighs_most_and_training_reads_the_file(topics, tmp_path):
    config = experiment(topics, DATASETS, TASKS)
    output = tmp_path / "new" / "weights.json"
    result, embedder = run(config, output)
    far, near, half, tiny = result.weights
    assert near > half > far and near > tiny > far
    assert read_weights(output, list(DATASETS), "config.data.weights") == dict(
        zip(DATASETS, result.weights.tolist(), strict=True)
    )
    tree = json.loads(output.read_text())
    assert sum(tree["weights"].values()) == pytest.approx(1)
    assert tree["similarity"]["near"]["i2i"] == result.similarity[1, 0]
    assert set(tree["kind"]["near"].values()) == {FUSED}
    assert tree["settings"] == dataclasses.asdict(config.balancing) and tree["seed"] == config.seed
    assert tree["samples"]["datasets"]["near"] == {"items": 60, FUSED: 60, "V": 60, "T": 60, "A": 60}
    assert tree["samples"]["datasets"]["tiny"]["items"] == 2
    # Eight distinct queries; the rest are items.
    assert tree["samples"]["tasks"]["q2i"] == {"items": 60, FUSED: 52, "V": 52, "T": 60, "A": 52}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.parent.iterdir()) == ["weights.json", "weights.png"]  # no scratch
    queries = {view for what, view in embedder.seen if "words" in what}
    assert {view.modalities for view in queries} == {"T"}


@pytest.mark.slow
def test_the_order_of_the_sets_and_other_sets_change_no_bit_of_a_similarity(topics, tmp_path):
    first, _ = run(experiment(topics, DATASETS, TASKS), tmp_path / "a.json")
    turned = {name: DATASETS[name] for name in ("half", "tiny", "near", "far")}
    second, _ = run(experiment(topics, turned, dict(reversed(TASKS.items()))), tmp_path / "b.json")
    one, _ = run(experiment(topics, {"half": DATASETS["half"]}, TASKS), tmp_path / "c.json")
    trees = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]
    assert trees[0] == trees[1]
    assert second.datasets == tuple(turned)
    np.testing.assert_array_equal(one.similarity[0], first.similarity[2])
    other, _ = run(experiment(topics, DATASETS, TASKS, samples=40), tmp_path / "d.json")
    assert not np.array_equal(other.similarity, first.similarity)


def test_a_set_of_one_modality_is_compared_by_the_modality_it_shares(topics, tmp_path):
    datasets = {
        "all": table("near"),
        "text": table("near", patterns=("T->T",)),
        "looks": table("near", patterns=("V->A", "VA->V")),
    }
    tasks = TASKS | {"text": table("queries", query="T", target="T")}
    result, _ = run(experiment(topics, datasets, tasks), tmp_path / "weights.json")
    assert result.kinds == (
        ((FUSED,), (FUSED,), ("T",)),
        (("T",), ("T",), ("T",)),
        ((FUSED,), (FUSED,), ()),
    )
    assert np.isnan(result.similarity[2, 2]) and np.isfinite(np.delete(result.similarity.ravel(), 8)).all()
    tree = json.loads((tmp_path / "weights.json").read_text())
    assert tree["similarity"]["looks"]["text"] is None and tree["kind"]["looks"]["text"] is None
    assert tree["kind"]["all"]["text"] == "T"
    assert tree["samples"]["datasets"]["text"] == {"items": 60, FUSED: 0, "V": 0, "T": 60, "A": 0}


def test_a_stray_item_gives_a_set_of_texts_no_further_modality(topics, tmp_path):
    result, _ = run(experiment(topics, {"one": table("one")}, TASKS), tmp_path / "weights.json")
    assert result.kinds == ((("T",), ("T",)),)
    # Free texts are shown under "O", but have a single modality.
    assert result.samples["datasets"]["one"] == {"items": 60, FUSED: 1, "V": 1, "T": 60, "A": 1}


def test_several_shared_modalities_are_averaged(topics, tmp_path):
    shown = {"V": ("V->V",), "T": ("T->T",), "both": ("V->T",)}
    datasets = {name: table("half", patterns=patterns) for name, patterns in shown.items()}
    result, _ = run(experiment(topics, datasets, {"i2i": table("near")}, samples=80), tmp_path / "weights.json")
    assert result.kinds == ((("V",),), (("T",),), (("V", "T"),))
    assert result.similarity[2, 0] == pytest.approx(result.similarity[:2, 0].mean(), abs=0.02)


def test_a_set_that_shares_no_modality_with_any_task_is_an_error(topics, tmp_path):
    datasets = {"all": table("near"), "looks": table("near", patterns=("V->V",))}
    config = experiment(topics, datasets, {"text": table("queries", query="T", target="T")})
    message = r"datasets.looks has no kind .* it has V \(60\) of 60 .*tasks.text has T \(\d+\) of .*remove the data set"
    with pytest.raises(SailError, match=message):
        run(config, tmp_path / "weights.json")
    assert not list(tmp_path.iterdir())


def test_samples_are_distinct_bounded_and_of_both_sides(topics):
    config = experiment(topics, {"near": table("near"), "search": table("queries", patterns=("T->O",))}, TASKS)
    store = open_store(config)
    (only,) = sample_items(training_set(config, "near"), store, 1000, seed=0).values()
    assert sorted(only) == list(range(80))  # both sides show the same, so each item counts once
    for count in (1, 2, 3, 7, 40):
        (only,) = sample_items(training_set(config, "near"), store, count, seed=0).values()
        assert len(set(only)) == len(only) == count
    search = training_set(config, "search")
    queries, targets = sample_items(search, store, 1000, seed=0).values()
    assert len(queries) == 8 and len(targets) == 80
    queries, targets = sample_items(search, store, 4, seed=0).values()
    assert len(queries) == len(targets) == 2
    assert sample_items(search, store, 20, seed=0) != sample_items(search, store, 20, seed=1)


def test_an_unknown_item_is_an_error(topics, tmp_path):
    write_pairs(tmp_path / "bad.parquet", [(Pair("0-1", None, "nobody"), "train")])
    config = experiment(topics, {"bad": {"table": str(tmp_path / "bad.parquet")}}, TASKS)
    with pytest.raises(SailError, match="config.data.datasets.bad.*'nobody'.*ingest again"):
        run(config, tmp_path / "weights.json")


def test_one_instruction_for_all(topics, tmp_path):
    config = experiment(topics, {"near": DATASETS["near"]}, TASKS)
    unified = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, unified="One for all."))
    _, embedder = run(unified, tmp_path / "weights.json")
    assert {view.instruction for _, view in embedder.seen} == {"One for all."}


@pytest.mark.parametrize(
    ("datasets", "tasks", "output", "message"),
    [
        ({}, TASKS, "w.json", "config.data.datasets is empty"),
        (DATASETS, {}, "w.json", "config.eval.tasks is empty"),
        (DATASETS, TASKS, "w.png", "ends in .json"),
        ({"near": table("neer")}, TASKS, "w.json", "no pair table .*Did you mean near.parquet"),
        ({"near": table("near", split="x")}, TASKS, "w.json", "no split 'x'"),
        (
            {"near": table("near", patterns=("VX->T",))},
            TASKS,
            "w.json",
            "config.data.datasets.near.patterns, 'VX->T', is 'VX'",
        ),
        ({"near": table("near", patterns=())}, TASKS, "w.json", r"patterns is \(\); name at least one"),
        ({"near": table("near", query_fields=("titel",))}, TASKS, "w.json", r"unknown text fields \['titel'\]"),
        (DATASETS, {"i2i": table("near", query="Q")}, "w.json", "config.eval.tasks.i2i.query is 'Q'"),
    ],
)
def test_mistakes_in_the_config(topics, tmp_path, datasets, tasks, output, message):
    with pytest.raises(SailError, match=message):
        run(experiment(topics, datasets, tasks), tmp_path / output)


def test_the_heat_map_takes_any_names_gaps_and_equal_values(tmp_path):
    result = BalancingResult(
        datasets=("a $ name_ of some length, and more", "b"),
        tasks=("c",),
        similarity=np.array([[0.5], [np.nan]]),
        kinds=((("V", "T"),), ((),)),
        weights=np.array([1.0, 0.0]),
        samples={},
        settings=BalancingConfig(),
        seed=0,
    )
    write_heat_map(result, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


# --------------------------------------------------------------------------------------------------- the real model


@pytest.mark.slow
def test_an_untrained_model_weighs_the_sets_of_a_world(settings, tmp_path):
    settings.balancing.update(samples=24, centroids=4)
    settings.eval.batch_size = 8
    settings.model.perceiver.max_frames = settings.model.audio.max_clips = 1  # so that few shapes are compiled
    config = config_lib.build(settings)
    shapes = jax.eval_shape(lambda: init_params(config.model, config.seed))
    rng = np.random.default_rng(0)
    # Drawn here, as `init_params` takes long to compile; not negative, as variances are among the parameters.
    params = jax.tree.map(lambda leaf: 0.2 * rng.random(leaf.shape, np.float32), shapes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    embedder = Embedder(config, params, make_extractor(config), mesh)
    result = balance(embedder, config, open_store(config), tmp_path / "weights.json")
    assert result.weights.sum() == pytest.approx(1) and np.all(result.weights > 0)
    assert np.all(np.abs(result.similarity) <= 1)
    weights = read_weights(tmp_path / "weights.json", list(config.data.datasets), "config.data.weights")
    assert list(weights.values()) == result.weights.tolist()
