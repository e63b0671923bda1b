"""The TF-IDF baseline: searches by the cosine of word weights, for tasks with text on both sides."""

from collections.abc import Sequence

import numpy as np

_QUERY_BLOCK = 1024


def tfidf_top_k(
    queries: Sequence[str], corpus: Sequence[str], k: int, *, exclude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k texts of the corpus nearest to each query under scikit-learn's TF-IDF.

    Terms are words; term frequencies are sublinear.

    Args:
        queries: Q texts.
        corpus: N texts; the vocabulary and the document frequencies come from them.
        k: number of results per query.
        exclude: [Q] int, the row that a search must not return, or -1.

    Returns:
        rows: [Q, k] int64, -1 if fewer than k texts share a word with the query.
        cosines: [Q, k] float32.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    documents = vectorizer.fit_transform(corpus)
    rows = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(queries), _QUERY_BLOCK):
        scores = (vectorizer.transform(queries[start : start + _QUERY_BLOCK]) @ documents.T).toarray()
        for offset, score in enumerate(scores):
            query = start + offset
            if exclude[query] >= 0:
                score[exclude[query]] = 0
            best = np.argsort(-score, kind="stable")[:k]
            best = best[score[best] > 0]
            rows[query, : len(best)], cosines[query, : len(best)] = best, score[best]
    return rows, cosines
