"""Outputs of towers on disk: read as written, whole or not at all, through pickles and blocks of shared memory."""

import pickle

import ml_dtypes
import numpy as np
import pytest

from sail_jax.data import tower_outputs as lib
from sail_jax.data.shared_batches import BlockReader, BlockWriter
from sail_jax.errors import SailError


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_outputs_are_read_as_they_were_written(tmp_path, dtype):
    form = lib.Form((2, 3), dtype)
    values = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(dtype)
    keys = [lib.media_key(b"picture", part) for part in range(5)]
    lib.write_outputs(tmp_path, keys[:2], values[:2])
    lib.write_outputs(tmp_path, keys[2:], values[2:])
    outputs = pickle.loads(pickle.dumps(lib.TowerOutputs(tmp_path, form)))
    for key, value in zip(keys, values, strict=True):
        found = outputs.get(key)
        assert found.dtype == dtype and not found.flags.writeable
        np.testing.assert_array_equal(found, value)
    assert len(outputs) == 5 and lib.media_key(b"another") not in outputs
    assert outputs.get(lib.media_key(b"another")) is None
    assert sum(file.stat().st_size for file in tmp_path.glob("*.rows.npy")) < 5 * form.nbytes + 2 * 200


def test_a_folder_that_is_not_there_has_none(tmp_path):
    outputs = lib.TowerOutputs(tmp_path / "none", lib.Form((2,), np.float32))
    assert len(outputs) == 0 and outputs.get(7) is None


@pytest.mark.parametrize("killed_while", ["rows", "keys"])
def test_what_a_killed_process_wrote_does_not_count(tmp_path, monkeypatch, killed_while):
    form = lib.Form((4,), np.float32)
    lib.write_outputs(tmp_path, [1], np.ones((1, 4), np.float32))

    class Killed(BaseException):
        pass

    save = np.save

    def killed(file, array):
        if killed_while in file.name:
            file.write(b"\x93NUMPY half of it")
            raise Killed
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            lib.write_outputs(tmp_path, [2], np.ones((1, 4), np.float32))
    assert list(tmp_path.glob("*.partial"))
    outputs = lib.TowerOutputs(tmp_path, form)
    assert len(outputs) == 1 and 2 not in outputs
    lib.write_outputs(tmp_path, [2], np.full((1, 4), 2, np.float32))
    assert lib.TowerOutputs(tmp_path, form).get(2)[0] == 2


def test_a_damaged_file_is_named(tmp_path):
    form = lib.Form((4,), np.float32)
    lib.write_outputs(tmp_path, [1], np.ones((1, 4), np.float32))
    (rows,) = tmp_path.glob("*.rows.npy")
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(SailError, match=r"rows\.npy cannot be read .*Remove"):
        lib.TowerOutputs(tmp_path, form).get(1)


def test_workers_send_outputs_through_shared_memory(tmp_path):
    writer, reader = BlockWriter(tmp_path), BlockReader(tmp_path)
    array = writer.empty((64, 1024), ml_dtypes.bfloat16)
    array[:] = np.arange(1024)
    plain = np.full(3, 1.5, ml_dtypes.bfloat16)
    found = reader.loads(writer.dumps([array, plain]))
    for one, other in zip(found, (array, plain), strict=True):
        assert one.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(one, other)
