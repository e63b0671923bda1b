"""Data for the tests of search: embeddings of random vectors, and a run with random parameters."""

import faiss
import numpy as np

from sail_jax import config as config_lib
from sail_jax.data.features import View
from sail_jax.data.instructions import instructions_of
from sail_jax.items import TEXT_FIELDS
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, part_path, write_info, write_part

# That of the items in the training of the tests' experiment.
DOCUMENT = instructions_of(config_lib.load("quickstart")).document
# Tests run in parallel, a process on each core.
faiss.omp_set_num_threads(1)


def write_embeddings(folder, ids, z, *, model="runs/x", of="0123", dtype="float32", rows_per_part=1000):
    """An embedding folder of some vectors, in parts."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(ids), rows_per_part)):
        stop = start + rows_per_part
        write_part(part_path(folder, number), ids[start:stop], z[start:stop], dtype)
    write_info(folder, EmbeddingInfo(model, of, z.shape[1], dtype, "VTA", TEXT_FIELDS, DOCUMENT))
    return EmbeddingSet(folder)


def clustered(rows, width, *, of=100, spread=0.35, seed=0):
    """Vectors around centres, in which earlier dimensions weigh more, as in a Matryoshka embedding; any length."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(of, width))
    z = centres[rng.integers(0, of, rows)] + spread * rng.normal(size=(rows, width))
    return (z * np.linspace(1, 0.2, width) * rng.uniform(0.5, 2, (rows, 1))).astype(np.float32)


def unit(z):
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9)


def brute_force(queries, z, k):
    """(rows, cosines) by numpy; rows of zeros are never found."""
    scores = unit(queries).astype(np.float64) @ unit(z).astype(np.float64).T
    scores[:, ~z.any(axis=1)] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def recall(found, wanted):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)])


def embed_store(embedder, folder, store, *, modalities="VTA", dims=None, **options):
    """The first 64 items of a store, those that have some of the modalities, embedded."""
    items = [item for item in (store[i] for i in range(64)) if set(modalities) & set(item.modalities)]
    view = View(modalities, TEXT_FIELDS, DOCUMENT)
    z = np.concatenate([part[0] for part, _ in embedder.stream(items, view, (modalities,))])
    ids, of = [item.item_id for item in items], fingerprint(embedder.params)
    return write_embeddings(folder, ids, z[:, :dims], of=of, **options)
