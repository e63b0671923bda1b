"""The kinds of index and the kinds of query files, as choices of the command line."""

INDEX_KINDS = ("flat", "ivfpq", "hnsw")
FILE_KINDS = ("image", "audio", "video")
