"""What all rules read, the logs as tables; and the expressions that they share.

Rules of pairs and of sequences are functions of `Logs`, in expressions that every engine of Ibis runs.
"""

import dataclasses
from collections.abc import Callable, Mapping

import ibis
import ibis.expr.types as ir
import numpy as np

from sail_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Logs:
    """The logs of a build.

    Attributes:
        config: the experiment.
        cut: the last second of the train split.
        tables: log -> its table, with the columns of `canonical.SCHEMAS`; "store", if the items are restricted.
        keep: writes a table under a name and returns it as it was written, for what is read more than once.
    """

    config: Config
    cut: int
    tables: Mapping[str, ir.Table]
    keep: Callable[[ir.Table, str], ir.Table]

    def known(self, rows: ir.Table) -> ir.Table:
        """Adds `known`: whether the row's item may occur in pairs."""
        if "store" not in self.tables:
            return rows.mutate(known=True)
        store = self.tables["store"].select(stored="item")
        return rows.left_join(store, rows.item == store.stored).mutate(known=ibis._.stored.notnull()).drop("stored")

    def sides(self, rows: ir.Table) -> tuple[ir.BooleanValue, ir.BooleanValue]:
        """Returns whether rows with a user and a time are of the train side, and of the test side, as columns."""
        late, users = rows.time > self.cut, self.config.logs.split
        if users == "time":
            return ~late, late
        held = draw(self.config.seed, ibis.literal("user"), rows.user) < hex_share(self.config.logs.test_users)
        return (~held, held) if users == "user" else (~held & ~late, held & late)

    def split(self, rows: ir.Table) -> ir.Table:
        """Adds `test` to rows with a user and a time, and leaves out those of neither side."""
        train, test = self.sides(rows)
        return (rows.filter(train | test) if self.leaves_out else rows).mutate(test=test)

    @property
    def leaves_out(self) -> bool:
        """Whether some rows are of neither side."""
        return self.config.logs.split == "both"

    def published(self, rows: ir.Table) -> ir.Table:
        """Adds `test`: whether the row's item was published after the cut; false where that is not known."""
        if "catalogue" not in self.tables:
            return rows.mutate(test=False)
        first = self.tables["catalogue"].group_by("item").agg(time=ibis._.time.min())
        late = first.filter(first.time > self.cut).select(late="item")
        return rows.left_join(late, rows.item == late.late).mutate(test=ibis._.late.notnull()).drop("late")


@ibis.udf.scalar.builtin
def md5(text: str) -> str:  # type: ignore[empty-body]
    """The hash of a text by which rows are drawn; only its order counts."""


def draw(seed: int, *columns: ir.StringColumn) -> ir.StringColumn:
    """Returns a hash of a seed and some texts, the same for all engines, versions and orders of rows."""
    text = ibis.literal(str(seed))
    for column in columns:
        text = text + "\t" + column
    return md5(text)


def hex_share(share: float) -> str:
    """Returns the text before which this share of all hashes of `draw` comes, 0 <= share < 1."""
    return f"{int(share * 2**32):08x}"


def at_least(column: ir.NumericValue, limit: float) -> ir.BooleanValue:
    """Returns whether a Float32 column reaches a limit, which is rounded to Float32 too.

    Some engines compare as Float32 and some as Float64, and would differ where the two are equal.
    """
    return column.cast("float64") >= ibis.literal(float(np.float32(limit)), "float64")


def place(group: list[str], order: list) -> ir.IntegerValue:
    """Returns the place of a row in its group, from 0."""
    return ibis.row_number().over(ibis.window(group_by=group, order_by=order))
