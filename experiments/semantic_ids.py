"""Compares residual k-means and the learned residual VQ on a mixture of Gaussians.

    python -m experiments.semantic_ids

Both have the same sample and the same levels. Writes experiments/results/semantic_ids.json: the figures of each method
on all vectors, and the seconds of fit and assignment.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.common import machine, versions
from sail_jax.config.semantic_ids import VQSettings
from sail_jax.semantic_ids.codebooks import SemanticIds, fit_folder
from sail_jax.semantic_ids.table import write_table
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, part_path, write_info, write_part

VECTORS, WIDTH, CENTRES, SAMPLES, LEVELS = 100_000, 128, 2000, 30_000, (256, 256, 256)
METHODS = {"kmeans": None, "device-kmeans": None, "vq": VQSettings(steps=300)}


def write_vectors(folder: Path) -> EmbeddingSet:
    """Writes a folder of embeddings drawn from Gaussians around random centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, WIDTH), np.float32)
    z = centres[rng.integers(0, CENTRES, VECTORS)] + 0.7 * rng.standard_normal((VECTORS, WIDTH), np.float32)
    folder.mkdir()
    write_part(part_path(folder, 0), [f"item{i}" for i in range(VECTORS)], z, "float32")
    write_info(folder, EmbeddingInfo("a mixture", "0", WIDTH, "float32", "VTA", (), ""))
    return EmbeddingSet(folder)


def measure(embeddings: EmbeddingSet, method: str, folder: Path) -> dict[str, Any]:
    """Figures of a method on all vectors, after all levels."""
    began = time.monotonic()
    fit_folder(embeddings, {folder: LEVELS}, method=method, samples=SAMPLES, anchors=0, vq=METHODS[method])
    fitted = time.monotonic()
    figures = write_table(SemanticIds.load(folder), embeddings, folder / "ids.parquet", anchors=1000)
    return {"fit_seconds": fitted - began, "assign_seconds": time.monotonic() - fitted, "figures": figures}


def main() -> None:
    """Measures all methods and writes the file."""
    with tempfile.TemporaryDirectory() as scratch:
        embeddings = write_vectors(Path(scratch) / "vectors")
        results = {method: measure(embeddings, method, Path(scratch) / method) for method in METHODS}
    setting = {"vectors": VECTORS, "width": WIDTH, "centres": CENTRES, "samples": SAMPLES, "levels": LEVELS}
    figures = {"machine": machine(), "versions": versions("faiss-cpu", "flax"), "setting": setting, "methods": results}
    path = Path(__file__).parent / "results" / "semantic_ids.json"
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
