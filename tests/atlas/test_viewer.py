"""The process of Embedding Atlas: it starts with the file, is waited for, and ends with the verb."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import tiny

from sail_jax.atlas import viewer as lib
from sail_jax.atlas.table import AtlasReport
from sail_jax.atlas.viewer import Viewer, flags_of, free_port
from sail_jax.cli import main
from sail_jax.errors import SailError

VERB = ("atlas", "--workdir", "run", "--embeddings", "embeddings/float32")
# Stands for the package: it serves, and ends with a line on stderr when it is asked for /end, or at once.
FAKE = """
import http.server, os, sys
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if sys.argv[1] == "bad.parquet":
    sys.exit("bad.parquet cannot be read")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            sys.stderr.write("out of memory\\n"); sys.stderr.flush(); os._exit(1)
        self.send_response(200); self.end_headers()

http.server.HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A run with its embeddings and items, which is the working directory."""
    folder = shutil.copytree(tiny.REPO / "tests" / "written_by_0_1", tmp_path / "written")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A package in place of Embedding Atlas."""
    package = tmp_path / "packages" / "embedding_atlas"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_command_has_the_columns_that_there_are(tmp_path):
    file = tmp_path / "[a].parquet"
    whole = ["--x", "x", "--y", "y", "--text", "text", "--image", "image", "--host", "127.0.0.1"]
    assert flags_of(file, AtlasReport(3, 0, 0, 2, 1)) == [str(file), *whole]
    assert flags_of(file, AtlasReport(3, 0, 0, 0, 0)) == [str(file), *whole[:4], *whole[8:]]


@pytest.mark.usefixtures("fake")
def test_it_is_waited_for_and_ended():
    port = free_port(0)
    with Viewer(["good.parquet", "--host", "127.0.0.1"], port) as viewer:
        assert get(port, "/data/metadata.json")[0] == 200 and viewer.url == f"http://127.0.0.1:{port}/"
    assert free_port(port) == port


@pytest.mark.usefixtures("fake")
def test_what_it_says_when_it_ends_by_itself_is_told():
    with pytest.raises(SailError, match="could not be started: bad.parquet cannot be read"):
        Viewer(["bad.parquet", "--host", "127.0.0.1"], free_port(0)).__enter__()
    port = free_port(0)
    with Viewer(["good.parquet", "--host", "127.0.0.1"], port) as viewer:
        with pytest.raises(http.client.HTTPException):
            get(port, "/end")
        with pytest.raises(SailError, match="Embedding Atlas ended: out of memory"):
            viewer.wait()


def test_a_port_that_is_taken_is_told_before_the_work(written, monkeypatch, capsys):
    monkeypatch.setattr(lib, "is_installed", lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([*VERB, "--port", port]) == 2
    assert f"Port {port} of 127.0.0.1 cannot be opened" in capsys.readouterr().err
    assert not (written / "run" / "atlas.parquet").exists()


def test_without_the_extra_the_files_are_written_and_it_says_how_to_go_on(written, monkeypatch, capsys):
    monkeypatch.setattr(lib, "is_installed", lambda: False)
    assert main([*VERB, "--projector", "p"]) == 0
    said = capsys.readouterr().out
    path = written / "run" / "atlas.parquet"
    assert re.search(r"Atlas: 48 points, \d+ of them with a text and \d+ with a picture: ", said) and path.is_file()
    assert f"Next: pip install -e '.[atlas]' && embedding-atlas {path} --x x --y y --text text --image image" in said
    assert "Projector: 48 points: " in said and "Next: tensorboard --logdir p\n" in said
    assert main([*VERB, "--projector", "p"]) == 2
    assert "p exists; name another --projector" in capsys.readouterr().err


def test_a_map_is_a_parquet_file(written, capsys):
    assert main([*VERB, "--output", "maps/atlas"]) == 2
    assert f"name it {written / 'maps' / 'atlas.parquet'}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verb_serves_the_file_on_this_machine_alone_until_ctrl_c(written):
    pytest.importorskip("embedding_atlas", reason="needs the extra atlas")
    command = [sys.executable, "-m", "sail_jax", *VERB, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(tiny.REPO)}
    ) as verb:
        address = next(found for line in verb.stdout if (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)))
        port = int(address[1])
        props = json.loads(get(port, "/data/metadata.json")[1])["props"]["data"]
        assert props["projection"] == {"x": "x", "y": "y"} and props["text"] == "text" and props["image"] == "image"
        query = {"type": "json", "sql": "SELECT count(*) AS n, count(image) AS images, min(id) AS id FROM dataset"}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/data/query", json.dumps(query))
        (counts,) = json.loads(connection.getresponse().read())
        assert counts["n"] == 48 and 30 < counts["images"] < 48 and counts["id"] == "item000000"
        verb.send_signal(signal.SIGINT)
        assert verb.stdout.read().endswith("Stopped.\n")
    assert verb.returncode == 0
    assert free_port(port) == port
