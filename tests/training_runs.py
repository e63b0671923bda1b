"""Training runs in processes of their own, to be killed; runs on few devices or without training; their vectors."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from sail_jax import config as config_lib
from sail_jax.data import pipeline
from sail_jax.data.store import ItemStore
from sail_jax.embedding.bulk import EmbedOptions, embed
from sail_jax.embedding.embedder import load
from sail_jax.embedding.item_source import open_source
from sail_jax.models.model import init_params
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory

_RUN = """
import gc, sys, numpy as np, jax
gc.set_threshold(100_000, 50, 100)  # as in conftest.py
from sail_jax import config as config_lib
from sail_jax.training.loop import train
result = train(config_lib.load(sys.argv[1]), sys.argv[2])
leaves = jax.tree.leaves(jax.device_get(result.state))
np.savez(sys.argv[3], *leaves)
"""


def environment(devices):
    """The environment of these tests, with another number of devices."""
    flags = re.sub(r"(--xla_force_host_platform_device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags}


@contextlib.contextmanager
def on_devices(count):
    """Within it there are only so many devices: each more makes programs longer to compile and checkpoints to write."""
    devices = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("devices", "local_devices"):
            patch.setattr(jax, name, lambda *_, **__: devices)
        yield


def start(config_file, workdir, out):
    """Starts to train; the leaves of the final state are written to `out`."""
    command = [sys.executable, "-c", _RUN, str(config_file), str(workdir), str(out)]
    return subprocess.Popen(command, env=environment(2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]


def kill_when(process, happened):
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def save_untrained(path, config):
    """Makes `path` a run whose checkpoint holds random parameters; returns it."""
    path.mkdir()
    config_lib.save(config, path / "config.json")
    checkpoints = Checkpoints(RunDirectory(path))
    checkpoints.save(1, {"model": init_params(config.model, 0)}, {})
    checkpoints.close()
    return path


def embed_items(run, output):
    """Embeds the texts of all items into a folder, on the devices of all processes."""
    embedder = load(run)
    options = EmbedOptions(modalities="T", rows_per_part=64)
    embed(embedder, open_source(None, embedder.config), Path(output), options, model="")


def give_id_embeddings(monkeypatch, embeddings):
    """Gives the items of stores ID embeddings as if they were ingested: name -> vector, of the number of an item."""
    plain = ItemStore.get

    def get(self, item_id):
        return dataclasses.replace(plain(self, item_id), id_embeddings=embeddings(int(item_id[4:])))

    monkeypatch.setattr(ItemStore, "get", get)
    monkeypatch.setattr(pipeline, "require_id_embeddings", lambda *_: None)
