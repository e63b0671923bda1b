"""Says of each metric what it is, and which of two values is the better one."""

from typing import NamedTuple

HIGHER, LOWER, NEITHER = 1, -1, 0


class MetricFacts(NamedTuple):
    """What is known of a metric.

    Attributes:
        direction: `HIGHER` or `LOWER`, the better value; `NEITHER` where a value alone is neither good nor bad.
        meaning: what it is, in a sentence.
    """

    direction: int
    meaning: str


# First match by prefix.
_FACTS = {
    "recall@": MetricFacts(HIGHER, "share of all right answers that are among the first k found"),
    "accuracy": MetricFacts(HIGHER, "share of items whose label is among the first k found"),
    "ndcg@": MetricFacts(HIGHER, "as recall, but an answer counts less the lower it stands"),
    "mrr@": MetricFacts(HIGHER, "mean of one over the place of the first right answer"),
    "map@": MetricFacts(HIGHER, "mean precision at the places of the right answers"),
    "auc": MetricFacts(HIGHER, "chance that a right pair has a higher cosine than a wrong one; 0.5 is a coin"),
    "bijective": MetricFacts(HIGHER, "share of queries whose nearest item has them as its nearest query"),
    "clustering/nmi": MetricFacts(HIGHER, "how far clusters of queries and of targets agree, 0 to 1"),
    "agreement/kendall": MetricFacts(HIGHER, "how far queries and targets rank others alike, -1 to 1"),
    "agreement/top@": MetricFacts(HIGHER, "share of neighbours that queries and targets have in common"),
    "graded/queries": MetricFacts(NEITHER, "number of queries with grades"),
    "graded/": MetricFacts(HIGHER, "how far cosines follow the grades of the pairs"),
    "separability/overlap": MetricFacts(LOWER, "share that cosines of right and of other pairs have in common"),
    "separability/dprime": MetricFacts(HIGHER, "distance of both means in standard deviations"),
    "separability/gap": MetricFacts(HIGHER, "mean cosine of right pairs less that of other pairs"),
    "separability/negative_mean": MetricFacts(LOWER, "mean cosine of other pairs"),
    "separability/positive_mean": MetricFacts(NEITHER, "mean cosine of right pairs; a collapsed model has 1"),
    "spread/mean_norm": MetricFacts(NEITHER, "length of the mean vector; 1 if all items have one vector"),
    "spread/effective_dimension": MetricFacts(NEITHER, "number of directions that the vectors use"),
}
_UNKNOWN = MetricFacts(NEITHER, "")


def facts_of(metric: str) -> MetricFacts:
    """Returns what is known of a metric, such as "recall@10"."""
    return next((facts for prefix, facts in _FACTS.items() if metric.startswith(prefix)), _UNKNOWN)


def is_compared(metric: str) -> bool:
    """Returns whether one value of a metric is better than another one."""
    return facts_of(metric).direction != NEITHER


def lower_is_better(metric: str) -> bool:
    """Returns whether the lower value of a metric is the better one."""
    return facts_of(metric).direction == LOWER
