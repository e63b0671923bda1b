"""The types in which vectors and weights are stored, as choices of the command line."""

VECTOR_DTYPES = ("float32", "bfloat16", "int8", "binary")
WEIGHT_DTYPES = ("float32", "bfloat16")

# Before the name of a repository of the Hugging Face hub; what has no prefix is a folder here.
HUB = "hf://"
