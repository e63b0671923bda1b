"""Batches of similar items give the same vectors, in order, as batches in the order of the items."""

import io
import itertools

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from sail_jax import config as config_lib
from sail_jax.data.collate import collate
from sail_jax.data.features import View
from sail_jax.data.instructions import instructions_of
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.video import video_frames
from sail_jax.data.pipeline import make_extractor
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.embedding import memory, windows
from sail_jax.embedding.embedder import Embedder
from sail_jax.embedding.windows import NothingShownError
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import TEXT_FIELDS, Item, text_item
from sail_jax.models.model import init_params, make_model
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.sharding.mesh import make_mesh

VIEW = View("VTA", TEXT_FIELDS, "Find it.")
VIEWS = ("VTA", "T")
BATCH = 4


@pytest.fixture(scope="module", params=[1, 2], ids=["one device", "two devices"])
def embedder(request, world):
    values = tiny.experiment(world)
    values.eval.batch_size = BATCH
    config = config_lib.build(values)
    mesh = make_mesh(config.mesh, jax.local_devices()[: request.param])
    return Embedder(config, init_params(config.model, 0), make_extractor(config), mesh)


def picture(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(255, size=(9, 9, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def mixed_items():
    """Items of all lengths, with and without media, two of them unusable."""
    rng = np.random.default_rng(0)
    items = [text_item(" ".join(["word"] * n)) for n in rng.integers(1, 60, 14)]
    items += [Item(f"seen-{i}", {"title": "a b c" * i}, tuple(map(picture, range(i % 3)))) for i in range(1, 8)]
    items += [Item("heard", audio_embedding=rng.normal(size=16).astype(np.float32))]
    items += [Item("bad", frames=(b"no picture",)), Item("empty")]
    return [items[i] for i in rng.permutation(len(items))]


def plain_vectors(embedder, items):
    """Vectors of each item in its own batch at full length; zeros for unusable items."""
    config = embedder.config
    model, extractor = make_model(config.model), make_extractor(config)
    apply = jax.jit(lambda batch: model.apply({"params": embedder.params}, batch, (VIEWS,))[0][0])
    out = np.zeros((len(VIEWS), len(items), config.model.llm.width), np.float32)
    for i, item in enumerate(items):
        if item.item_id in ("bad", "empty"):
            continue
        room = {"frame_capacity": 2, "clip_capacity": 0, "audio_width": config.model.audio.projection}
        batch, _ = collate([[extractor(item, VIEW)]], [0], [None], groups=1, **room)
        out[:, i] = apply(batch)[:, 0]
    return out


@pytest.mark.slow
def test_vectors_equal_those_of_single_items_at_full_length(embedder, monkeypatch):
    monkeypatch.setattr(windows, "_WINDOW_BATCHES", 3)
    items = mixed_items()
    expected = plain_vectors(embedder, items)
    blocks = list(embedder.stream(iter(items), VIEW, VIEWS))
    assert [z.shape[1] for z, _ in blocks] == [12, 12]
    np.testing.assert_allclose(np.concatenate([z for z, _ in blocks], axis=1), expected, atol=2e-5)
    bad = {12 * block + i: error for block, (_, errors) in enumerate(blocks) for i, error in errors.items()}
    assert {items[i].item_id: isinstance(error, NothingShownError) for i, error in bad.items()} == {
        "bad": False,
        "empty": True,
    }


@pytest.mark.slow
def test_a_window_is_bounded_and_closes_early_on_media(embedder, monkeypatch):
    monkeypatch.setattr(windows, "_WINDOW_BATCHES", 2)
    taken = itertools.count()
    endless = (text_item(f"text {next(taken)}") for _ in itertools.count())
    assert next(embedder.stream(endless, VIEW, VIEWS))[0].shape[1] == 2 * BATCH
    assert next(taken) == 4 * BATCH  # the next window is prepared while the device works
    monkeypatch.setattr(windows, "_WINDOW_BYTES", 1)
    seen = [Item(f"seen-{i}", frames=(picture(i),)) for i in range(3 * BATCH)]
    assert [z.shape[1] for z, _ in embedder.stream(seen, VIEW, VIEWS)] == [BATCH] * 3
    assert not list(embedder.stream([], VIEW, VIEWS))


@pytest.mark.slow
def test_batches_are_as_long_as_their_longest_item(embedder, monkeypatch):
    shapes = []
    forward = embedder_lib.forward

    def spy(model, params, batch, views):
        shapes.append(batch.tokens.shape)
        return forward(model, params, batch, views)

    monkeypatch.setattr(embedder_lib, "forward", spy)
    long = " ".join(["word"] * 200)
    embedder.encode(["a", long, "b", long, "c", long, "d", long, "e"], instruction="")
    lengths, rows = [n for *_, n in shapes], [rows for rows, *_ in shapes]
    assert rows[:2] == [BATCH, BATCH] and rows[2] < BATCH
    assert lengths[0] < 40 and lengths[1:] == [96, 96]


def test_there_are_few_lengths():
    steps = {windows._bucket(length) for length in range(513)}
    assert len(steps) == 20 and all(windows._bucket(step) == step for step in steps)
    assert all(length <= windows._bucket(length) <= length * 1.25 + 8 for length in range(513))


def test_kernels_see_the_mesh(embedder, monkeypatch):
    """A fused kernel has to be run shard by shard, for which it reads the mesh that is set."""
    seen = []
    monkeypatch.setattr(
        embedder_lib, "forward", lambda *_: seen.append(jax.sharding.get_abstract_mesh()) or np.zeros((1, 8, 32))
    )
    next(embedder.stream([text_item("glass")], VIEW, ("T",)))
    assert [mesh.shape for mesh in seen] == [embedder.mesh.shape]


@pytest.mark.slow
def test_all_local_devices_work(run, monkeypatch):
    devices, forward = [], embedder_lib.forward
    monkeypatch.setattr(
        embedder_lib, "forward", lambda *a: devices.append(a[2].tokens.sharding.device_set) or forward(*a)
    )
    embedder_lib.load(run).encode(["a"] * 8)
    assert [len(some) for some in devices] == [jax.local_device_count()] == [8]


# ------------------------------------------------------------------------------------------------------ the Python API


def sound():
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) / 9), 16_000, format="WAV")
    return out.getvalue()


@pytest.mark.slow
def test_dicts_are_items(embedder, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.wav").write_bytes(sound())
    opened, pixels = Image.open(tmp_path / "a.png"), decode_image(picture(1), 9)
    dicts = [
        {"title": "glass", "tags": None, "image": tmp_path / "a.png"},
        {"title": "glass", "image": opened},
        {"id": "x", "title": "glass", "image": [pixels]},
        {"text": "glass"},
        {"image": [picture(1), str(tmp_path / "a.png")], "audio": str(tmp_path / "a.wav")},
        {"audio": sound()},
        {"text": "glass", "audio_embedding": [0.5] * 16},
        str(tmp_path / "a.png"),
        tmp_path / "a.wav",
    ]
    seen = Item("", {"title": "glass"}, (picture(1),))
    vector = Item("", {"query": "glass"}, audio_embedding=np.full(16, 0.5, np.float32))
    items = [seen, seen, seen, "glass", Item("", {}, (picture(1),) * 2, sound()), Item("", audio=sound()), vector]
    items += [Item("", frames=(picture(1),)), Item("", audio=sound())]
    np.testing.assert_array_equal(embedder.encode(dicts), embedder.encode(items))


@pytest.mark.slow
def test_texts_are_queries_and_items_are_documents_with_the_instructions_of_training(embedder):
    query, document = instructions_of(embedder.config)
    search = embedder.config.data.datasets["search"]
    assert (query, document) == (search.query_instruction, search.target_instruction) and query != document
    item = {"title": "glass"}
    z = embedder.encode(["glass", item, {"text": "glass"}, item])
    for rows, role in ((z[[0, 2]], query), (z[[1, 3]], document)):
        shown = ["glass"] * 2 if role == query else [item] * 2
        np.testing.assert_allclose(rows, embedder.encode(shown, instruction=role), atol=1e-6)


@pytest.mark.slow
def test_a_video_gives_frames_and_sound(embedder, tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for level in range(0, 250, 25):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    frames = tuple(video_frames(path, embedder.config.ingest.frames_per_video))
    expected = embedder.encode([Item("", frames=frames)] * 2)
    np.testing.assert_array_equal(embedder.encode([{"video": path}, {"video": path.read_bytes()}]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"titel": "x"}, "record 'item 2', field 'titel'.*title"),
        ({"title": 3}, "record 'item 2', field 'title'.*not a text"),
        ({"text": "a", "title": "b"}, "record 'item 2', field 'text'.*no label"),
        ({"image": "absent.jpg"}, "record 'item 2', field 'image'.*absent.jpg"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "record 'item 2', field 'image'.*uint8"),
        ({"image": [b"no picture"]}, "record 'item 2', field 'frames.0.'.*decoded"),
        ({"image": b"", "video": b""}, "record 'item 2', field 'video'.*one of them"),
        ({"video": b"no film"}, "record 'item 2', field 'video'"),
        ({"id": "song", "audio": b"no sound"}, r"record 'item 2 \(song\)', field 'audio'"),
        ({"audio": 3}, "record 'item 2', field 'audio'.*path"),
        ({"audio_embedding": "loud"}, "record 'item 2', field 'audio_embedding'"),
        ({"audio_embedding": [[1.0]]}, "record 'item 2', field 'audio_embedding'.*one vector"),
        ("absent.jpg", r"record 'item 2': there is no file 'absent.jpg'.*{'text': \.\.\.}"),
        (3, "record 'item 2'.*a int is not an item"),
        ({}, "record 'item 2'.*none of the modalities"),
    ],
)
def test_items_that_cannot_be_used_are_named(embedder, item, message):
    with pytest.raises(BadRecordError, match=message):
        embedder.encode(["a", "b", item, "c"], batch_size=2)


def test_a_late_position_is_counted_over_windows(embedder, monkeypatch):
    monkeypatch.setattr(windows, "_WINDOW_BATCHES", 1)
    with pytest.raises(BadRecordError, match="record 'item 9'"):
        embedder.encode(["a"] * 9 + [{}])


@pytest.mark.slow
def test_dims_cut_and_batch_size_changes_nothing_else(embedder, monkeypatch):
    texts = [" ".join(["word"] * n) for n in (1, 9, 2, 30, 4, 5)]
    z = embedder.encode(texts)
    cut = z[:, :16] / np.linalg.norm(z[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.encode(iter(texts), dims=16), cut, atol=1e-6)
    rows, forward = [], embedder_lib.forward
    monkeypatch.setattr(embedder_lib, "forward", lambda *a: rows.append(len(a[2].tokens)) or forward(*a))
    np.testing.assert_allclose(embedder.encode(texts, batch_size=2, show_progress=True), z, atol=1e-5)
    assert rows == [2, 2, 2]
    assert embedder.encode([], dims=8).shape == (0, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dims": 33}, "1 to 32"), ({"dims": 0}, "1 to 32"), ({"batch_size": 0}, "at least 1"), ({"fields": ["x"]}, "x")],
)
def test_wrong_arguments_are_refused(embedder, arguments, message):
    with pytest.raises(SailError, match=message):
        embedder.encode(["a"], **arguments)
    with pytest.raises(SailError, match="takes a list"):
        embedder.encode({"title": "a"})


def test_text_that_is_not_unicode_is_named(embedder):
    with pytest.raises(BadRecordError, match="item 1.*not valid Unicode"):
        embedder.encode(["glass", "half a pair \ud800"])


def test_a_model_with_nan_vectors_is_refused(embedder):
    broken = Embedder(
        embedder.config,
        jax.tree.map(lambda leaf: leaf * np.nan, embedder.params),
        make_extractor(embedder.config),
        embedder.mesh,
    )
    with pytest.raises(SailError, match="not finite.*earlier checkpoint"):
        broken.encode(["glass"])


def _parameters():
    """Entries of very different sizes: sums of them in float32 round most away."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 24)) * 10.0 ** rng.integers(-12, 12, (16, 24))
    return {"a": {"kernel": kernel.astype(np.float32)}, "b": rng.normal(size=40).astype(jnp.bfloat16)}


def test_the_fingerprint_is_the_same_on_every_mesh():
    parameters = _parameters()
    expected = fingerprint(jax.device_put(parameters, jax.devices()[0]))
    mesh = make_mesh(config_lib.build(tiny.experiment("")).mesh, jax.local_devices()[:8])
    axis = next(name for name, size in mesh.shape.items() if size == 8)
    for spec in (PartitionSpec(), PartitionSpec(axis), PartitionSpec(None, axis)):
        kernel = jax.device_put(parameters["a"]["kernel"], NamedSharding(mesh, spec))
        assert fingerprint({"a": {"kernel": kernel}, "b": parameters["b"]}) == expected
    assert fingerprint(parameters) == expected


def test_the_fingerprint_changes_with_every_bit_name_and_shape():
    seen = {fingerprint(_parameters())}
    places = [place for place in np.ndindex(16, 24) if sum(place) % 13 == 0]
    for place in places:
        changed = _parameters()
        kernel = changed["a"]["kernel"]
        kernel[place] = np.nextafter(kernel[place], np.float32(np.inf))
        seen.add(fingerprint(changed))
    exchanged = _parameters()
    exchanged["a"]["kernel"][[0, 1]] = exchanged["a"]["kernel"][[1, 0]]
    first, second = _parameters(), _parameters()
    first["a"]["kernel"] = first["a"]["kernel"].reshape(24, 16)
    second["c"] = second.pop("b")
    seen |= {fingerprint(exchanged), fingerprint(first), fingerprint(second)}
    assert len(seen) == 1 + len(places) + 3


def test_an_export_is_not_a_run(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(SailError, match="SentenceTransformer"):
        embedder_lib.load(tmp_path)


def test_a_device_without_enough_memory(embedder, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 85899345920 bytes."
        )

    monkeypatch.setattr(embedder_lib, "forward", fail)
    with pytest.raises(SailError, match=r"85899345920 bytes.\nBeside parameters \(.* MiB .*config.eval.batch_size"):
        embedder.encode(["a text"])
    monkeypatch.setattr(memory, "device_memory", lambda device: 1)
    with pytest.raises(SailError, match=r"larger than its memory .*Raise config.mesh.fsdp"):
        embedder.encode(["a text"])
