"""The types in which vectors and weights are stored; the command line names one of them."""

VECTOR_DTYPES = ("float32", "bfloat16", "int8", "binary")
WEIGHT_DTYPES = ("float32", "bfloat16")
