"""What constructions know of items: their labels and clusters, and their consumers."""

import ibis
import ibis.expr.types as ir

from sail_jax.logs.rules import Logs, md5, place

# Of a user's MD5, so much that two users hardly have the same; and what sorts after all of these.
_HASH, _AFTER_ALL = 12, "~"


def labels(logs: Logs) -> ir.Table:
    """Returns the items that have labels: item, labels (each once), cluster (at `cluster_level`).

    An item with several rows has the labels of the row whose labels sort first.
    """
    items, level = logs.tables["catalogue"], logs.config.sequences.cluster_level
    some = items.filter(items.labels.length() > 0)
    some = some.mutate(first=place(["item"], [some.labels.join("\n")]))
    one = some.filter(some["first"] == 0)
    cluster = one.labels[ibis.least(one.labels.length() - 1, level)]
    return logs.keep(one.select("item", labels=one.labels.unique(), cluster=cluster), "labels")


def label_jaccard(of_item: ir.ArrayColumn, of_target: ir.ArrayColumn) -> ir.NumericColumn:
    """Returns the Jaccard similarity of two sets of labels."""
    both = of_item.intersect(of_target).length()
    return both / (of_item.length() + of_target.length() - both)


def hash_of_user(user: ir.StringColumn) -> ir.StringColumn:
    """Returns the hash of a user by which consumers are sampled."""
    return md5(user).substr(0, _HASH)


def consumers(logs: Logs) -> ir.Table:
    """Returns the consumers of items on the train side: item, users (hashes), reach.

    Of more than `behaviour_users` users, those with the lowest hashes stand for all; all items use the same hash of a
    user, so that the samples of two items can be compared ("bottom-k sketches", Cohen and Kaplan 2007). Up to `reach`,
    all users of an item are among them.
    """
    events, settings = logs.tables["events"], logs.config.sequences
    counts = (events.positives >= settings.multi_positives) & logs.sides(events)[0]
    users = events.filter(counts).select("item", user=hash_of_user(events.user)).distinct()
    lowest = users.mutate(number=place(["item"], ["user"]))
    lowest = lowest.filter(lowest.number < settings.behaviour_users)
    full = lowest.count() == settings.behaviour_users
    reach = ibis.ifelse(full, lowest.user.max(), _AFTER_ALL)
    return logs.keep(lowest.group_by("item").agg(users=lowest.user.collect(), reach=reach), "consumers")


def consumers_jaccard(rows: ir.Table) -> ir.NumericColumn:
    """Returns the Jaccard similarity of the sets of users who consumed two items, without one user.

    It is estimated from users whose hashes are within both items' reach, and exact if both lists are complete.

    Args:
        rows: users, reach (of the item), target_users, target_reach, own (the hash of the user to leave out).
    """
    reach = ibis.least(rows.reach, rows.target_reach)
    of_item, of_target = (
        users.filter(lambda user: (user <= reach) & (user != rows.own)) for users in (rows.users, rows.target_users)
    )
    both = of_item.intersect(of_target).length()
    either = of_item.length() + of_target.length() - both
    return both / ibis.greatest(either, 1)
