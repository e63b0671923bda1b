"""What `pairs` and `sequences` say of the logs that they read."""

from sail_jax.cli.log_folders import print_read


def test_rows_at_addresses_and_files_passed_over_are_said(capsys):
    facts = {"rows": 1200, "without_user": 0, "without_time": 30, "kept": 1170, "earliest": 1, "latest": 9}
    print_read({"logs": {"events": facts}, "passed_over": ["s3a://b/logs: 1 file passed over"]})
    rows, passed_over = capsys.readouterr().out.splitlines()
    assert rows == "events: 1,200 rows at its address, 1,170 usable (30 without time)."
    assert passed_over == "s3a://b/logs: 1 file passed over"
