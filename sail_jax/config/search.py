"""The kinds of index, and of files that are a query; the command line names one of them."""

INDEX_KINDS = ("flat", "ivfpq", "hnsw")
FILE_KINDS = ("image", "audio", "video")
