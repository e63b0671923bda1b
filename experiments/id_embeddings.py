"""Makes ID embeddings of the histories of train users: a truncated SVD, each vector times the singular values.

    python -m experiments.id_embeddings --workdir data/lastfm --output exports/lastfm/svd.parquet

reads `tables/histories.parquet` of the data, which `sequences` makes where the config asks for it, and writes `item_id`
and `vector`, 64 wide, of the items that a train user consumed. It is for data sets whose recommender's own embeddings
cannot be had; `sail-jax join-vectors` adds them to the items.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.data.store import FOLDER, ItemStore
from sail_jax.errors import SailError
from sail_jax.evaluation.co_counts import decompose, read_histories
from sail_jax.files import partial_file


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the data")
    parser.add_argument("--output", type=Path, required=True, help="the table to write")
    options = parser.parse_args()
    try:
        write(options.workdir, options.output)
    except SailError as error:
        sys.exit(f"error: {error}")


def write(data: Path, output: Path) -> None:
    """Writes the table of the histories in a data folder."""
    store = ItemStore.open(data / FOLDER)
    factors = decompose(read_histories(data / "tables" / "histories.parquet", store))
    vectors = (factors.vectors * factors.values).astype(np.float32)
    known = np.flatnonzero(vectors.any(axis=1))
    names = np.array(list(store.item_ids()))[known]
    table = pa.table({"item_id": names, "vector": list(vectors[known])})
    with partial_file(output) as partial:
        pq.write_table(table, partial)
    print(f"{len(known):,} of {len(store):,} items: {output}")


if __name__ == "__main__":
    main()
