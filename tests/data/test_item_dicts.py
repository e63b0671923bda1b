"""What a string is taken for, a text or a file, and that a path without a file is an error."""

import numpy as np
import pytest
from media_files import make_video, sine, sound_file

from sail_jax.config import default_config
from sail_jax.data.item_dicts import is_free_text, to_item
from sail_jax.data.media.pictures import encode_image
from sail_jax.errors import BadRecordError
from sail_jax.items import Item, text_item

INGEST = default_config().ingest
TEXTS = ["", "bread", "frame.jpg or frame.png?", "what is .jpg", "a\nframe.jpg", "notes.txt", "v1.2", "jpg", ".jpg"]
MISSING = ["missing.png", "a/missing file.JPG", "clip.mpg", "song.M4A", "photo.heic", "http://x.org/a.jpg"]
MISSING += ["x" * 999 + ".gif"]


@pytest.fixture
def media(tmp_path):
    """Files by name, and the items that they are."""
    picture = encode_image(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    sound = sound_file(sine(0.5, 16_000), 16_000)
    (tmp_path / "my frame.JFIF").write_bytes(picture)
    (tmp_path / "song.wav").write_bytes(sound)
    make_video(tmp_path / "film.mp4")
    film = to_item({"video": tmp_path / "film.mp4"}, INGEST)
    return {
        tmp_path / "my frame.JFIF": Item("", frames=(picture,)),
        tmp_path / "song.wav": Item("", audio=sound),
        tmp_path / "film.mp4": film,
    }


def test_a_string_that_ends_in_a_media_suffix_is_the_path_of_a_file(media):
    for path, item in media.items():
        for value in (path, str(path)):
            assert to_item(value, INGEST) == item and not is_free_text(value)
        text = {"text": str(path)}
        assert to_item(text, INGEST) == text_item(str(path)) and is_free_text(text)


@pytest.mark.parametrize("text", TEXTS)
def test_any_other_string_is_a_text(text):
    assert to_item(text, INGEST) == text_item(text) and is_free_text(text)


@pytest.mark.parametrize("name", MISSING)
def test_a_path_without_a_file_is_an_error_that_says_how_to_give_a_text(name):
    with pytest.raises(BadRecordError, match=r"there is no file .*Check the path, or give \{'text': \.\.\.\}"):
        to_item(name, INGEST)
    assert to_item({"text": name}, INGEST) == text_item(name)


@pytest.mark.parametrize("key", ["image", "audio", "video"])
@pytest.mark.parametrize("entry", ["missing.png", "missing", "x" * 999, "a\0b"])
def test_an_entry_without_a_file_is_an_error(key, entry):
    with pytest.raises(BadRecordError, match=f"field '{key}': there is no file"):
        to_item({key: entry}, INGEST)


def test_a_path_of_another_kind_is_an_error(tmp_path):
    for name in ("notes.txt", "photo.heic"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(BadRecordError, match="of no kind that is read"):
            to_item(tmp_path / name, INGEST)
    with pytest.raises(BadRecordError, match="there is no file"):
        to_item(tmp_path, INGEST)
