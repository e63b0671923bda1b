"""The kinds of index, of query files and of projections to the plane, as choices of the command line."""

INDEX_KINDS = ("flat", "ivfpq", "hnsw")
FILE_KINDS = ("image", "audio", "video")
PROJECTIONS = ("tsne", "umap")
