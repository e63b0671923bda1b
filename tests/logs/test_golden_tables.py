"""The builders give the rows and the counts that stand in the golden tables."""

import golden_tables
import pytest
import small_logs as logs


@pytest.mark.parametrize("case", golden_tables.CASES)
def test_rows_and_counts_are_the_golden_ones(tmp_path, case):
    tables, summary = logs.build(tmp_path, golden_tables.make_logs(case, tmp_path))
    rows, counts = golden_tables.read_golden(case)
    assert golden_tables.counts_of(summary) == counts
    assert golden_tables.rows_of(tables) == rows
