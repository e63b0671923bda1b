"""Small files appear under their name only when complete."""

import json

import pytest

from sail_jax.files import commit_bytes, commit_json, partial_file, partial_folder


@pytest.mark.parametrize("shared", [False, True])
def test_a_small_file_replaces_the_one_before_and_leaves_no_part(tmp_path, shared):
    for text in ("before", "é"):
        commit_bytes(tmp_path / "x", text.encode(), shared=shared)
        assert (tmp_path / "x").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_json_is_indented_and_ends_in_a_line_break(tmp_path):
    values = {"a": [1, "é"]}
    commit_json(tmp_path / "x.json", values)
    assert (tmp_path / "x.json").read_bytes() == json.dumps(values, indent=2).encode() + b"\n"
    commit_json(tmp_path / "x.json", values, indent=None, ensure_ascii=False)
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{"a": [1, "é"]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        commit_json(tmp_path / "x.json", float("nan"), allow_nan=False)
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")  # as it was


def test_what_is_not_finished_takes_no_name_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), partial_file(tmp_path / "x") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), partial_folder(tmp_path / "y") as partial:
        (partial / "z").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "y.partial").mkdir()
    (tmp_path / "y.partial" / "old").touch()  # of a process that was killed
    with partial_file(tmp_path / "x") as partial:
        partial.write_text("whole")
    with partial_folder(tmp_path / "y") as partial:
        (partial / "z").write_text("whole")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "y", "y/z"]
