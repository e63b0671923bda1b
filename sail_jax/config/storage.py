"""The types in which vectors and weights are stored, as choices of the command line."""

VECTOR_DTYPES = ("float32", "bfloat16", "int8", "binary")
WEIGHT_DTYPES = ("float32", "bfloat16")
