"""Which column of a user's table of vectors holds the ids, and which the vectors."""

import pyarrow as pa

from sail_jax.data.parquet_files import missing_column
from sail_jax.errors import SailError

# `id` is the name in folders of embeddings.
_IDS, _VECTOR = ("item_id", "id"), "vector"


def vector_columns(file: str, schema: pa.Schema, setting: str = "") -> tuple[str, str]:
    """Returns the columns of the ids and of the vectors of a table.

    They are `item_id` or `id`, and `vector`. What is called otherwise is told by its type: vectors are the only column
    of lists of numbers, and ids the only other column.

    Args:
        file: the Parquet file, for messages.
        schema: its columns.
        setting: the setting or flag that names the file, for messages; may be empty.

    Raises:
        SailError: a column is missing, or several could be meant; or ids or vectors have a type that cannot be one.
    """
    change = f", or change {setting}" if setting else ""
    lists = [name for name in schema.names if _is_list(schema.field(name).type)]
    others = [name for name in schema.names if name not in lists]
    vectors = _VECTOR if _VECTOR in schema.names else _only(lists)
    ids = next((name for name in _IDS if name in schema.names), None) or _only([n for n in others if n != vectors])
    for wanted, column in ((_IDS[0], ids), (_VECTOR, vectors)):
        if column is None:
            raise SailError(
                f"{missing_column(file, wanted, schema.names)} Write it{change}; a table of ids and vectors alone may "
                "call them anything."
            )
    of_ids, of_vectors = schema.field(ids).type, schema.field(vectors).type
    if pa.types.is_nested(of_ids) or pa.types.is_temporal(of_ids):
        raise SailError(f"{file}: column {ids!r} is {of_ids}. Write texts or numbers{change}.")
    if not _is_list(of_vectors):
        raise SailError(f"{file}: column {vectors!r} is {of_vectors}. Write it as a list of numbers{change}.")
    return ids, vectors


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _is_list(dtype: pa.DataType) -> bool:
    lists = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return lists and (pa.types.is_floating(dtype.value_type) or pa.types.is_integer(dtype.value_type))
