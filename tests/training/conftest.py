"""An experiment with all losses, patterns and kinds of pairs, and its steps on one device."""

import pickle

import pytest
from mesh_steps import run_steps

from sail_jax import config as config_lib
from sail_jax.data.hard_negative_table import query_key, write_negatives
from sail_jax.data.tables import PairTable
from sail_jax.sharding import mesh as mesh_lib


@pytest.fixture
def everything(settings, world, tmp_path):
    """Several patterns, all losses, graded scores, hard negatives and their frequencies in one data set."""
    ids = [PairTable.open(world / "tables" / "theme.parquet", "train")[i].target_id for i in range(0, 40, 5)]
    table = PairTable.open(world / "tables" / "score.parquet", "train")
    queries = sorted({table[i].query_text for i in range(len(table))}, key=lambda text: query_key(None, text))
    write_negatives(tmp_path / "hard.parquet", ((None, q, ids, [0.5] * len(ids)) for q in queries), {})
    settings.data.datasets = {
        "score": {
            "table": "tables/score.parquet",
            "patterns": ("T->O", "T->VT", "T->A"),
            "min_score": 0.5,
            "negatives": str(tmp_path / "hard.parquet"),
            "hard_negatives": 2,
            "correct_popularity": 0.7,
        }
    }
    settings.objective.weights.update(nce=1.0, cosent=0.5, micl=0.3, late_fusion=0.2)
    settings.objective.matryoshka = (32, 4)
    return config_lib.build(settings)


@pytest.fixture
def whole(everything, tmp_path_factory):
    """The steps of `everything` on one device; the first test that asks computes them for all workers."""
    folder = tmp_path_factory.getbasetemp()
    kept = (folder.parent if folder.name.startswith("popen-") else folder) / "whole.pickle"
    if not kept.exists():
        partial = folder / "whole.partial"
        partial.write_bytes(pickle.dumps(run_steps(everything, (1, 1, 1))))
        partial.replace(kept)
    return pickle.loads(kept.read_bytes())


@pytest.fixture
def scattered_blocks(monkeypatch):
    """Puts the four blocks of a batch on places of the mesh that are not in order, as on the torus of several hosts."""
    ordered = mesh_lib._blocks
    monkeypatch.setattr(mesh_lib, "_blocks", lambda mesh: (2, 0, 3, 1) if mesh.size == 8 else ordered(mesh))
