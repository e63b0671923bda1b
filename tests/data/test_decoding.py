"""The time that the media of a record may take: pictures, sound and video, by every door."""

import dataclasses
import errno
import io
import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import av_file, make_video, sine, sound_file
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.config import default_config
from sail_jax.data.features import View
from sail_jax.data.ingest.records import RecordReader
from sail_jax.data.ingest.sources import Row
from sail_jax.data.item_dicts import to_item
from sail_jax.data.media import decoding, pictures, sound, video
from sail_jax.data.media.decoding import time_limit
from sail_jax.data.pipeline import make_extractor
from sail_jax.errors import BadRecordError
from sail_jax.items import Item
from sail_jax.search.searcher import QueryFile, query_item

TOO_LONG = r"take over .* s to decode.*config\.ingest\.max_decode_seconds"


def picture(kind="PNG", **options):
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(255, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("film") / "film.mp4", sound=sine(1, 44_100))


@pytest.fixture
def doors(film):
    """Each decoder with media."""
    pcm, aac = sound_file(sine(1, 16_000), 16_000), av_file(sine(1, 44_100), 44_100)
    return [
        lambda: pictures.decode_image(picture(), 8),
        lambda: pictures.decode_image(picture("JPEG"), 8),
        lambda: pictures.decode_small(picture("TIFF"), 8),
        lambda: pictures.check_image(picture("WEBP")),
        lambda: sound.decode_audio(pcm, 16_000),
        lambda: sound.check_audio(aac),
        lambda: video.video_frames(film, 3),
        lambda: video.video_audio(film.read_bytes()),
    ]


def test_every_decoder_heeds_the_limit_of_the_record(doors):
    for door in doors:
        with time_limit(60):
            door()
        with time_limit(1e-9), pytest.raises(BadRecordError, match=TOO_LONG):
            door()
        door()  # the limit ends with its block


def test_the_time_is_looked_at_while_a_file_is_decoded(doors, monkeypatch):
    """The time is over at the second look, which is within each decoder."""
    for door in doors:
        looks = iter([0.0])
        with time_limit(60):
            monkeypatch.setattr(decoding.time, "monotonic", lambda looks=looks: next(looks, time.time() + 1e9))
            with pytest.raises(BadRecordError, match=TOO_LONG):
                door()
        monkeypatch.undo()


def test_a_record_has_one_limit_for_all_of_its_media(doors, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(decoding.time, "monotonic", lambda: clock[0])
    with time_limit(10):
        for door in doors[:4]:
            door()
            clock[0] += 2.4
        clock[0] += 1
        with pytest.raises(BadRecordError, match="take over 10 s"):
            doors[4]()


def with_limit(seconds):
    config = config_lib.build(default_config())
    return dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, max_decode_seconds=seconds))


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_every_door_has_the_limit_of_the_settings(film, tmp_path, kind):
    data = {"image": picture(), "audio": sound_file(sine(1, 16_000), 16_000), "video": film.read_bytes()}[kind]
    column = "frames" if kind == "image" else kind

    def read(config):
        source = dataclasses.replace(config.ingest.source, id="id", **{"frames": "", "audio": "", column: "cell"})
        ingest = dataclasses.replace(config.ingest, source=source)
        return RecordReader(ingest, tmp_path)(Row("items.parquet", 1, {"id": "a", "cell": data}))

    for door, where in (
        (read, r"items\.parquet, record 'a \(row 1\)', field 'cell'"),
        (lambda config: query_item("", [QueryFile(kind, "file", data)], config), "file: the media"),
        (lambda config: to_item({kind: data}, config.ingest), "field 'video'"),
    ):
        if where != "field 'video'" or kind == "video":  # others are decoded by the extractor of features
            door(with_limit(60.0))
            with pytest.raises(BadRecordError, match=f"{where}.*take over 1e-09 s"):
                door(with_limit(1e-9))


def test_training_has_the_limit_of_the_settings(settings, world):
    for seconds in (60.0, 1e-9):
        settings.ingest.max_decode_seconds = seconds
        extract = make_extractor(config_lib.build(settings))
        view = View("VTA", ("title",), "")
        items = [Item("a", {"title": "x"}, (picture(),)), Item("a", audio=sound_file(sine(1, 16_000), 16_000))]
        for item, field in zip(items, ("frames[0]", "audio"), strict=True):
            if seconds > 1:
                assert extract(item, view).valid
            else:
                with pytest.raises(BadRecordError) as error:
                    extract(item, view)
                assert error.value.field == field and "1e-09 s to decode" in str(error.value)
        assert extract(Item("a", {"title": "x"}), view).valid


def test_a_jpeg_with_too_many_scans_is_refused(monkeypatch):
    """Each scan takes a few bytes and goes over all pixels."""
    data = picture("JPEG", progressive=True, quality=90)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert 2 < len(scans) < 20
    again = data[: scans[-1]] + data[scans[-1] : -2] * 200 + data[-2:]
    with pytest.raises(BadRecordError, match="has over 100 scans"):
        pictures.decode_image(again, 8)
    # What only looks like a scan does not count: in segments of text, and behind the end.
    comment = b"\xff\xfe" + (302).to_bytes(2, "big") + b"\xff\xda" * 150
    harmless = data[:2] + comment + data[2:] + b"\xff\xda" * 300
    np.testing.assert_array_equal(pictures.decode_image(harmless, 8), pictures.decode_image(data, 8))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB"),
        ImportError("libtiff.so.6: cannot open shared object file"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        av.error.OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_an_error_of_the_machine_is_no_bad_record(error):
    with pytest.raises(type(error)) as raised, decoding.decoding("the image"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated (3 bytes not processed)"),
        OSError(errno.EACCES, os.strerror(errno.EACCES)),
        KeyError("a tag"),
        av.error.OSError(errno.EIO, os.strerror(errno.EIO)),  # what FFmpeg says of damaged files
        av.error.MemoryError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_any_other_error_of_a_decoder_is_a_bad_record(error):
    with pytest.raises(BadRecordError, match="^the image ") as raised, decoding.decoding("the image"):
        raise error
    assert raised.value.__cause__ is error


def test_a_disk_that_fails_stops_what_reads_records(tmp_path, monkeypatch):
    path, ingest = tmp_path / "a.png", config_lib.build(default_config()).ingest
    path.write_bytes(picture())
    source = dataclasses.replace(ingest.source, id="id", frames="cell", audio="")
    reader = RecordReader(dataclasses.replace(ingest, source=source), tmp_path)
    doors = [
        lambda: reader(Row("items.jsonl", 1, {"id": "a", "cell": ["a.png"]})),
        lambda: to_item({"image": path}, ingest),
    ]
    for door in doors:
        door()
    for broken in ("read_bytes", "is_file"):
        for number, stops in ((errno.EIO, True), (errno.EACCES, False)):

            def fail(_, number=number):
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(Path, broken, fail)
                for door in doors:
                    with pytest.raises(OSError if stops else BadRecordError):
                        door()
