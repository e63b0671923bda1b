import contextlib
import importlib
import io
import json
import sys
import textwrap

import numpy as np
import pytest
import soundfile
from PIL import Image

from sail_jax.config import build
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.ingest.sources import _feature_cell, open_tfds
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.sound import decode_audio
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError

# A builder must lie in a module of a package. Encoded images are declared as text, as preparing Image features takes
# TensorFlow; what is stored is the same bytes.
BUILDER = """
    import io
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(i):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(out, "PNG")
        return out.getvalue()

    class TinyWorld(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "key": tfds.features.Text(),
                "title": tfds.features.Text(),
                "tags": tfds.features.Sequence(tfds.features.Text()),
                "encoded": tfds.features.Text(),
                "pixels": tfds.features.Tensor(shape=(2, 8, 8, 3), dtype=np.uint8),
                "sound": tfds.features.Tensor(shape=(None,), dtype=np.int16),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "gid": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(9):
                yield i, {
                    "key": f"id{i}",
                    "title": f"title {i} \\u00df",
                    "tags": ["a", "b"][: i % 3],
                    "encoded": png(i) if i % 2 else b"",
                    "pixels": np.full((2, 8, 8, 3), 10 * i, np.uint8),
                    "sound": np.arange(800, dtype=np.int16) + i,
                    "label": i % 2,
                    "gid": np.full(3, i, np.float32),
                }
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    package = folder / "code" / "tiny_world_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "builder.py").write_text(textwrap.dedent(BUILDER))
    sys.path.insert(0, str(folder / "code"))
    try:
        builder = importlib.import_module("tiny_world_package.builder").TinyWorld
    finally:
        sys.path.pop(0)
    # Without TensorFlow, TFDS prints a banner once it has prepared the set.
    with contextlib.redirect_stdout(io.StringIO()):
        builder(data_dir=folder / "data", file_format="array_record").download_and_prepare()
    return folder / "data"


def config(tfds="tiny_world:1.0.0[train]", **items):
    columns = {
        "id": "key",
        "text": {"title": "title", "tags": "tags"},
        "frames": "encoded",
        "audio": "sound",
        "audio_rate": 8000,
        "labels": "label",
        "id_embeddings": {"gid": "gid"},
    }
    return build({"ingest": {"source": {"tfds": tfds} | columns | items, "tables": {"self": {}}, "items_per_shard": 4}})


def test_data_source_to_store(data_dir, tmp_path):
    report = ingest(config(), data_dir, tmp_path)
    assert (report.items, report.modalities, report.bad_records) == (9, {"TA": 5, "VTA": 4}, 0)
    store = ItemStore.open(tmp_path / "items")
    assert {item.item_id for item in store} == {f"id{i}" for i in range(9)}
    item = store.get("id5")
    assert dict(item.text) == {"title": "title 5 ß", "tags": "a, b"}
    assert item.labels == ("dog",)
    np.testing.assert_array_equal(item.id_embeddings["gid"], [5, 5, 5])
    np.testing.assert_array_equal(decode_audio(item.audio, 8000), np.arange(800) + 5)
    assert soundfile.info(io.BytesIO(item.audio)).samplerate == 8000
    # The encoded image is passed on as it is.
    assert np.asarray(Image.open(io.BytesIO(item.frames[0])))[0, 0].tolist() == [5, 0, 0]
    assert len(PairTable.open(tmp_path / "tables/self.parquet")) == 9


def test_decoded_arrays_become_frames(data_dir, tmp_path):
    ingest(config(frames="pixels"), data_dir, tmp_path)
    item = ItemStore.open(tmp_path / "items").get("id3")
    assert len(item.frames) == 2
    assert (decode_image(item.frames[1], 8) == 30).all()


def test_image_features_are_not_decoded(data_dir, tmp_path, monkeypatch):
    """The set says now that "encoded" is an image, as a set prepared with TensorFlow does."""
    file = data_dir / "tiny_world/1.0.0/features.json"
    original = file.read_text()
    features = json.loads(original)
    features["featuresDict"]["features"]["encoded"] = {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    for name in [name for name in sys.modules if name.startswith("tiny_world_package")]:
        monkeypatch.delitem(sys.modules, name)
    try:
        file.write_text(json.dumps(features))
        source = open_tfds(data_dir, "tiny_world:1.0.0[train]")
        images = [row.cells["encoded"] for row in source.read(0)]
    finally:
        file.write_text(original)
    assert all(isinstance(image, bytes) for image in images)
    assert sum(image.startswith(b"\x89PNG") for image in images) == 4


def test_sound_features_bring_their_sample_rate():
    class Audio:
        sample_rate = 11_025

    sound = _feature_cell(Audio(), np.arange(500))
    assert soundfile.info(io.BytesIO(sound)).samplerate == 11_025
    np.testing.assert_array_equal(decode_audio(sound, 11_025), np.arange(500))


def test_slices_and_resumption(data_dir):
    whole = list(open_tfds(data_dir, "tiny_world[train]").read(0))
    assert [row.number for row in whole] == list(range(1, 10))
    part = open_tfds(data_dir, "tiny_world[train[:5]]")
    assert part.rows == 5
    assert [row.cells["key"] for row in part.read(3)] == [row.cells["key"] for row in whole[3:5]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(tfds="tiny_world"), "write it as 'name/config:1.0.0"),
        (config(tfds="tiny_word[train]"), "tiny_word.* cannot be read .* the folder holds: .*tiny_world"),
        (config(tfds="tiny_world:9.0.0[train]"), "cannot be read"),
        (config(tfds="tiny_world[test]"), "Unknown split 'test'"),
        (config(frames="picture"), "has no column 'picture'; it has .*Change config.ingest.source.frames"),
        (config(audio_rate=0), "set config.ingest.source.audio_rate"),
    ],
)
def test_wrong_settings(data_dir, tmp_path, settings, message):
    with pytest.raises(SailError, match=message):
        ingest(settings, data_dir, tmp_path)
