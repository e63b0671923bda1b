"""The columns of a user's table of vectors, by their names or else by their types."""

import pyarrow as pa
import pytest

from sail_jax.data.vector_columns import vector_columns
from sail_jax.errors import SailError

TEXT, NUMBER, VECTOR = pa.string(), pa.int64(), pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"item_id": TEXT, "vector": VECTOR, "popularity": NUMBER}, ("item_id", "vector")),
        ({"id": NUMBER, "vector": pa.list_(pa.float64(), 3)}, ("id", "vector")),
        ({"embedding": VECTOR, "iid": TEXT}, ("iid", "embedding")),
        ({"iid": TEXT, "vector": VECTOR, "neighbours": VECTOR}, ("iid", "vector")),
        ({"item_id": TEXT, "popularity": NUMBER, "emb": pa.large_list(pa.int8())}, ("item_id", "emb")),
    ],
)
def test_columns_are_told_by_their_names_or_else_by_their_types(columns, found):
    assert vector_columns("t.parquet", pa.schema(columns)) == found


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"iid": TEXT, "user": TEXT, "vector": VECTOR}, "t.parquet has no column 'item_id'; it has 'iid', 'user'"),
        ({"item_id": TEXT, "a": VECTOR, "b": VECTOR}, "no column 'vector'; it has 'item_id', 'a', 'b'"),
        ({"item_id": TEXT, "x": NUMBER}, "no column 'vector'.* change config.x; a table of ids and vectors alone"),
        ({"item_id": pa.date32(), "vector": VECTOR}, r"column 'item_id' is date32.*Write texts or numbers"),
        ({"item_id": TEXT, "vector": pa.list_(TEXT)}, "column 'vector' is list.*Write it as a list of numbers"),
    ],
)
def test_columns_that_nobody_can_tell_are_named(columns, message):
    with pytest.raises(SailError, match=message):
        vector_columns("t.parquet", pa.schema(columns), "config.x")
