"""The constructions of sequences: which items before a target are kept, and in which order.

The four train constructions are those of arXiv 2510.12709, sec. 3.3.5; the two test constructions those of sec. 4.2.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir

from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.logs.rules import Logs, draw, place
from sail_jax.logs.sequences.item_facts import consumers, consumers_jaccard, hash_of_user, label_jaccard, labels

_WINDOW = ["user", "at"]
_RECENT = (ibis.desc("place"),)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Targets and the candidates before them.

    Attributes:
        logs: the logs.
        targets: user, target, at, first, test; see `histories.targets`.
        rows: user, at, target, item, place; see `histories.candidates`.
    """

    logs: Logs
    targets: ir.Table
    rows: ir.Table

    def drawn(self) -> ir.Table:
        """Adds `draw` to the rows: a hash of the seed, the user, the target and the item."""
        rows = self.rows
        return rows.mutate(draw=draw(self.logs.config.seed, rows.user, rows.target, rows["item"]))


class Choice(NamedTuple):
    """The candidates that a construction keeps, and their order of priority.

    Attributes:
        known: the targets' items that have what the construction needs (item); None if all have.
        kept: the rows of the candidates that are kept.
        priority: columns of `kept`, the most important first; the rows with the lowest form the sequence.
    """

    known: ir.Table | None
    kept: ir.Table
    priority: tuple[Any, ...]


def content_codes(c: Candidates) -> ir.Table:
    """Adds the codes of the content embeddings of item and target; drops rows where one has none."""
    vectors = c.logs.tables["vectors"]
    of_item, of_target = vectors.rename(item_code="code"), vectors.rename(target="item", target_code="code")
    return c.rows.join(of_item, "item").join(of_target, "target")


def _content_single(c: Candidates) -> Choice:
    """Keeps candidates close to the target in content embedding; prefers the most recent."""
    close = content_codes(c).semi_join(c.logs.tables["close"], ["item_code", "target_code"])
    return Choice(c.logs.tables["vectors"], close, _RECENT)


def _content_multi(c: Candidates) -> Choice:
    """Keeps candidates with labels that overlap the target's; prefers the most recent."""
    known = labels(c.logs)
    of_target = known.select(target="item", target_labels="labels")
    rows = c.rows.join(known, "item").join(of_target, "target")
    near = label_jaccard(rows.labels, rows.target_labels) > c.logs.config.sequences.label_jaccard
    return Choice(known, rows.filter(near), _RECENT)


def _collab_single(c: Candidates) -> Choice:
    """Keeps candidates consumed by the same other users as the target; draws in proportion to the clusters."""
    users = consumers(c.logs)
    of_target = users.select(target="item", target_users="users", target_reach="reach")
    rows = _clustered(c)
    rows = rows.join(users, "item").join(of_target, "target")
    rows = rows.mutate(own=hash_of_user(rows.user))
    near = consumers_jaccard(rows) >= c.logs.config.sequences.behaviour_jaccard
    return _in_proportion(rows.filter(near))


def _collab_multi(c: Candidates) -> Choice:
    """Keeps all candidates; draws in proportion to the clusters of the history."""
    return _in_proportion(_clustered(c))


def _vanilla(c: Candidates) -> Choice:
    """Keeps all candidates; draws at random."""
    return Choice(None, c.drawn(), ("draw",))


def _whole(c: Candidates) -> Choice:
    """Keeps all candidates, in their order."""
    return Choice(None, c.rows, ("place",))


def _filtered(c: Candidates) -> Choice:
    """Keeps candidates in the target's cluster; draws at random."""
    known = labels(c.logs).select("item", "cluster")
    same = c.drawn().join(known, "item").join(known.rename(target="item"), ["target", "cluster"])
    return Choice(known, same, ("draw",))


def _clustered(c: Candidates) -> ir.Table:
    """Adds `draw`, `cluster` (null for items without labels) and `share`, how many candidates of the cluster are."""
    of_item = labels(c.logs).select("item", "cluster")
    rows = c.drawn().left_join(of_item, "item").drop("item_right")
    return rows.mutate(share=rows.count().over(ibis.window(group_by=[*_WINDOW, "cluster"])))


def _in_proportion(rows: ir.Table) -> Choice:
    """Orders rows so that, for every n, the first n of a window follow the shares of its clusters.

    This is the method of Sainte-Lague: the r-th item of a cluster (from 0) has the priority share / (r + 1/2). Ties,
    and the order within a cluster, are drawn.
    """
    claim = (place([*_WINDOW, "cluster"], ["draw"]) + 0.5) / rows.share
    return Choice(None, rows.mutate(claim=claim), ("claim", "draw"))


@dataclasses.dataclass(frozen=True)
class Construction:
    """A way to build sequences, with the inputs that it needs.

    Attributes:
        choose: keeps candidates and ranks them.
        peak: "single" or "multi", which chooses the threshold of positive behaviours.
        needs: what it reads beside the events: "labels", "embeddings".
        evaluation: whether it builds test sequences only.
        whole: whether it builds one train sequence of each user, with all items up to the cut.
    """

    choose: Callable[[Candidates], Choice]
    peak: str
    needs: tuple[str, ...] = ()
    evaluation: bool = False
    whole: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it builds."""
        return ("test",) if self.evaluation else ("train",) if self.whole else ("train", "test")

    def positives(self, settings: SequencesConfig) -> int:
        """The least number of positive behaviours with which an event counts."""
        return settings.single_positives if self.peak == "single" else settings.multi_positives


CONSTRUCTIONS = {
    "seq_content_single": Construction(_content_single, "single", ("embeddings",)),
    "seq_content_multi": Construction(_content_multi, "multi", ("labels",)),
    "seq_collab_single": Construction(_collab_single, "single", ("labels",)),
    "seq_collab_multi": Construction(_collab_multi, "multi", ("labels",)),
    "histories": Construction(_whole, "multi", whole=True),
    "eval_vanilla": Construction(_vanilla, "multi", (), evaluation=True),
    "eval_filtered": Construction(_filtered, "multi", ("labels",), evaluation=True),
}
