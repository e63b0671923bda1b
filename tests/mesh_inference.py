"""What a run's model gives, by one process or by several together: vectors, hard negatives, figures and weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sail_jax import config as config_lib
from sail_jax.curation.balancing.weights import balance
from sail_jax.curation.mining.dataset import mine_dataset
from sail_jax.data.pipeline import open_store
from sail_jax.embedding.bulk import EmbedOptions, embed
from sail_jax.embedding.embedder import load
from sail_jax.embedding.item_source import open_source
from sail_jax.evaluation.suite import metrics_tree, run_suite
from sail_jax.vectors.embedding_set import EmbeddingSet


def infer(run, out):
    """Writes them to the folder `out`."""
    out, config = Path(out), config_lib.load(Path(run) / "config.json")
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, tfidf=False, untrained=False))
    # Blocks, not one matrix in memory: then each process scores a part of the queries.
    config = dataclasses.replace(config, mining=dataclasses.replace(config.mining, exact_scores=0))
    embedder, store = load(run, config), open_store(config)
    out.mkdir(exist_ok=True)
    options = EmbedOptions(modalities="T", rows_per_part=64)
    embed(embedder, open_source(None, config), out / "vectors", options, model="")
    mine_dataset(embedder, config, store, "copair", out / "negatives.parquet")
    results, _, _ = run_suite(config, Path(run))
    balanced = balance(embedder, config, store, out / "weights.json")
    figures = metrics_tree(results)["trained"] | {"similarity": balanced.similarity.item()}
    if embedder.processes.first:
        (out / "figures.json").write_text(json.dumps(figures))
    return embedder


def read(out):
    """Returns them: ids and vectors [n, D]; query -> targets; name -> figure."""
    ids, vectors = zip(*EmbeddingSet(out / "vectors").batches(), strict=True)
    mined = pq.read_table(out / "negatives.parquet").to_pylist()
    figures = json.loads((out / "figures.json").read_text())
    return sum(ids, []), np.concatenate(vectors), mined, figures
