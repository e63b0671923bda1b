"""Completions after Tab, requested in the way of argcomplete's shell code."""

import os
import subprocess
import sys

import pytest

RUN = "import sys; sys.argv = ['sail-jax']; from sail_jax.__main__ import run; run()"


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("sail-jax ev", {"evaluate"}, {"train"}),
        ("sail-jax semantic-ids ", {"fit", "assign", "lookup"}, {"train"}),
        ("sail-jax train --w", {"--workdir"}, {"--config"}),
        ("sail-jax embed --config.data.dir=x --dtype b", {"bfloat16", "binary"}, {"int8"}),
        ("sail-jax train --config.optimizer.p", {"--config.optimizer.peak="}, {"--config.data.dir="}),
    ],
)
def test_completion(line, expected, absent, tmp_path):
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([sys.executable, "-c", RUN], check=True, env=os.environ | asked, capture_output=True)
    found = {word.strip() for word in answer.read_text().split("\n")}
    assert expected <= found and not absent & found
