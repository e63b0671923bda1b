"""What the verb says of the rules: how much each dropped, and which default takes nearly all."""

import small_logs as logs
from small_logs import config

from sail_jax.logs.pairs.report import Step, kept_and_dropped, steps, warnings, without_test


def test_rules_in_their_order_and_the_default_that_takes_nearly_all(tmp_path):
    """Ten users share one pair, which stays; forty pairs are those of one user each."""
    rows = [(f"u{n}", item, time, 1) for n in range(10) for time, item in ((1, "a"), (2, "b"))]
    rows += [(f"v{n}", f"{n}-{side}", 5, 1) for n in range(40) for side in "xy"]
    rows += [("w", "z", 3, 0), ("last", "z", 1000, 1)]
    logs.write(tmp_path / "logs/events", logs.events(rows))
    _, counts = logs.build(tmp_path, config(), "copair")
    found = [step for step in steps(counts["copair"]) if step.dropped]
    assert found == [Step("rows_below_threshold", 102, 1), Step("support", 41, 40)]
    said = "copair: 41 candidates, 1 kept; dropped: rows_below_threshold 1 of 102, support 40 of 41"
    assert kept_and_dropped("copair", counts["copair"]) == said
    (warning,) = warnings("copair", counts["copair"])
    assert "support dropped 97.6% of 41; open it with config.builders.copair.min_users (2)" in warning


def test_a_setting_of_the_user_is_no_surprise():
    counts = {"rows_read": 90, "candidates": 100, "dropped_support": 99, "train": 1, "test": 0}
    assert list(warnings("copair", counts | {"settings": {"min_users": 3}})) == []
    assert len(list(warnings("copair", counts | {"settings": {"min_users": 2}}))) == 1


def test_tables_that_train_and_cannot_test_are_named():
    trains, tests, empty = {"train": 5, "test": 0}, {"train": 5, "test": 1}, {"train": 0, "test": 0}
    assert without_test({"copair": tests, "live": empty}) == ""
    said = without_test({"copair": trains, "search": tests, "cls": trains})
    assert said.startswith("No test row: copair, cls.") and "held_out=0.1" in said
    assert "held_out" not in without_test({"cls": trains})
