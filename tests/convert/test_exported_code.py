"""The code that exported models ship with: in PyTorch, the vectors of the JAX model, from the same media."""

import io
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import tiny
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from sail_jax import config as config_lib
from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.convert.export import export
from sail_jax.data.media.kinds import SUFFIXES, is_media_path, media_kind
from sail_jax.data.media.pictures import decode_image
from sail_jax.data.media.sound import clip_audio, decode_audio
from sail_jax.data.pipeline import make_extractor
from sail_jax.data.prompts import shown_fields
from sail_jax.embedding.embedder import Embedder
from sail_jax.items import Item, text_item
from sail_jax.models.model import init_params
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh

VARIANTS = {
    "aimv2, qwen2": {},
    "siglip, qwen3, causal": {
        "vit": {"kind": "siglip", "image_size": 30, "norm_eps": 1e-6},
        "llm": {"qkv_bias": False, "qk_norm": True, "head_dim": 10, "causal": True},
        "perceiver": {"attention": "latents"},
        "audio": {"mel_scale": "htk", "normalize": False},
        "pool_prompt": False,
    },
    "internvit": {"vit": {"kind": "internvit", "norm_eps": 1e-6}},
}
TOLERANCE = 1e-5
INSTRUCTION = "Represent the search."


def experiment(data_dir, changes):
    values = tiny.experiment(data_dir)
    values.model.perceiver.update(layers=2, max_frames=4)
    values.model.audio.update(window=4, max_clips=3, depths=(2, 1), heads=(2, 4))
    values.model.update(changes)
    values.eval.batch_size = 24
    return config_lib.build(values)


def drawn_params(config):
    """Parameters far from their initialisation, where every one matters."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if name in ("mean", "var"):
            return {"mean": -30, "var": 100}[name] + 20 * np.abs(noise)
        return 1.5 * noise * leaf.shape[-2] ** -0.5 if name == "kernel" else (name == "scale") + 0.2 * noise

    shapes = jax.eval_shape(lambda: init_params(config.model, 0))
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.fixture(scope="module")
def exports(world, tmp_path_factory):
    """Variant -> (exported directory, the embedder in JAX), made when it is asked for."""
    made = {}

    def get(variant):
        if variant not in made:
            config = experiment(world, VARIANTS[variant])
            params = drawn_params(config)
            run = RunDirectory(tmp_path_factory.mktemp("run"))
            config_lib.save(config, run.config)
            checkpoints = Checkpoints(run)
            checkpoints.save(1, {"model": params}, {})
            checkpoints.close()
            out = run.path / "exported"
            export(run.path, out)
            mesh = make_mesh(config.mesh, jax.local_devices()[:1])
            made[variant] = out, Embedder(config, params, make_extractor(config), mesh)
        return made[variant]

    return get


@pytest.fixture(scope="module")
def exported(exports):
    return exports("aimv2, qwen2")


@pytest.fixture(scope="module")
def model(exported):
    return transformers.AutoModel.from_pretrained(exported[0], trust_remote_code=True)


@pytest.fixture(scope="module")
def processor(exported):
    return transformers.AutoProcessor.from_pretrained(exported[0], trust_remote_code=True)


# --------------------------------------------------------------------------------------------------------------- media


def encoded(pixels, kind="PNG", orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, exif=exif)
    return out.getvalue()


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(np.iinfo(dtype).max, size=shape, dtype=dtype)


def tinted(seed):
    """Noise around a colour: pure noise is much the same to a tower of random weights."""
    return np.clip(pixels(30, 41, 3, seed=seed) // 3 + pixels(3, seed=seed).astype(int), 0, 255).astype(np.uint8)


def gradient(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


def sound(seconds, rate=16_000, channels=1, kind="FLAC"):
    """A rising tone and noise, the pitch and the share of noise of which the length decides."""
    time, part = np.arange(int(seconds * rate)) / rate, seconds % 1
    noise = np.random.default_rng(1).normal(size=(len(time), channels))
    tone = np.sin(2 * np.pi * time * (150 + 3000 * part + 200 * time))[:, None]
    out = io.BytesIO()
    soundfile.write(out, 0.3 * tone + 0.2 * part**3 * noise, rate, format=kind)
    return out.getvalue()


PICTURES = {
    "plain.png": encoded(pixels(40, 31, 3)),
    "plain.jpg": encoded(gradient(40, 29), "JPEG"),
    **{f"turned{tag}.jpg": encoded(gradient(40, 29), "JPEG", orientation=tag) for tag in range(2, 9)},
    "transparent.png": encoded(pixels(33, 40, 4)),
    "grey16.png": encoded(pixels(20, 31, dtype=np.uint16)),
}
LARGE = encoded(gradient(300, 260), "JPEG")
SOUNDS = {
    "short.flac": sound(0.3),
    "exact.flac": sound(1.0),
    "little_rest.flac": sound(1.05),
    "rest.flac": sound(2.3),
    "longer_than_max.flac": sound(4.6),
    "stereo_22khz.wav": sound(1.4, 22_050, 2, "WAV"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for name, data in (PICTURES | SOUNDS | {"large.jpg": LARGE}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def cases(folder, exported):
    """Items as the exported model takes them, and as the JAX model does."""
    vector = np.random.default_rng(2).normal(size=16).astype(np.float32)
    video = [tinted(seed) for seed in range(7)]
    samples, _ = soundfile.read(folder / "rest.flac", dtype="int16")
    fields = {"title": "Sour  dough", "asr": "bread", "ocr": "Sour dough", "tags": "x\x07 y", "nickname": ""}
    pairs = [
        ("how to   bake bread!!!!!!!", text_item("how to   bake bread!!!!!!!")),
        ("word " * 300, text_item("word " * 300)),
        ("<|im_end|>\n<|im_start|>system", text_item("<|im_end|>\n<|im_start|>system")),
        (fields | {"nickname": None}, Item("", text=fields)),
        (str(folder / "plain.png"), Item("", frames=(PICTURES["plain.png"],))),
        (Image.fromarray(video[0]), Item("", frames=(encoded(video[0]),))),
        (video[1], Item("", frames=(encoded(video[1]),))),
        (np.stack(video[:3]), Item("", frames=tuple(map(encoded, video[:3])))),
        ({"video": video}, Item("", frames=tuple(map(encoded, video)))),
        (folder / "short.flac", Item("", audio=SOUNDS["short.flac"])),
        ({"audio": str(folder / "longer_than_max.flac")}, Item("", audio=SOUNDS["longer_than_max.flac"])),
        ({"array": samples, "sampling_rate": 16_000}, Item("", audio=SOUNDS["rest.flac"])),
        ({"audio_embedding": vector}, Item("", audio_embedding=vector)),
        (
            {"title": "T", "image": [folder / "plain.jpg", Image.fromarray(video[2])], "audio": folder / "exact.flac"},
            Item("", {"title": "T"}, (PICTURES["plain.jpg"], encoded(video[2])), SOUNDS["exact.flac"]),
        ),
        (
            {"text": "q", "image": folder / "turned6.jpg", "audio_embedding": vector, "audio": folder / "short.flac"},
            Item("", {"query": "q"}, (PICTURES["turned6.jpg"],), SOUNDS["short.flac"], vector),
        ),
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


# --------------------------------------------------------------------------------------------------------------- tests


def unit(z):
    return torch.nn.functional.normalize(z.detach().float(), dim=-1).numpy()


def assert_same_vectors(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert (ours * theirs).sum(-1).min() >= 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_are_those_of_the_jax_model(exports, cases, variant):
    directory, embedder = exports(variant)
    model = transformers.AutoModel.from_pretrained(directory, trust_remote_code=True)
    processor = transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        z = model(**processor(cases[0])).embedding
    expected = embedder.encode(cases[1])
    apart = np.abs(expected[:, None] - expected).max(-1)[np.triu_indices(len(expected), 1)]
    assert apart.min() > 100 * TOLERANCE, "the items are too much alike to tell mistakes"
    assert_same_vectors(unit(z), expected)


def test_one_at_a_time_equals_a_batch(model, processor, cases):
    with torch.no_grad():
        batch = model(**processor(cases[0])).embedding
        single = torch.cat([model(**processor([item])).embedding for item in cases[0]])
    np.testing.assert_allclose(single, batch, atol=1e-5)


@pytest.mark.slow
def test_everything_is_loaded_from_the_file(exports):
    for variant in VARIANTS:
        directory, _ = exports(variant)
        options = {"trust_remote_code": True}
        model, info = transformers.AutoModel.from_pretrained(directory, output_loading_info=True, **options)
        assert not any(info.values()), info
        state, file = model.state_dict(), load_file(directory / "model.safetensors")
        assert all(torch.equal(state[name], value) for name, value in file.items()) and state.keys() == file.keys()
        config = transformers.AutoConfig.from_pretrained(directory, **options)
        fresh = transformers.AutoModel.from_config(config, **options)
        assert all(parameter.isfinite().all() for parameter in fresh.parameters())
        # Rotary frequencies, positions and the like are computed, not loaded.
        computed = dict(fresh.named_buffers())
        assert all(torch.equal(v, computed[name]) for name, v in model.named_buffers() if "batch_norm" not in name)


def test_bfloat16_and_eager_attention_stay_close(exported, model, processor, cases):
    arrays = processor(cases[0])
    with torch.no_grad():
        expected = unit(model(**arrays).embedding)
        options = {"trust_remote_code": True}
        eager = transformers.AutoModel.from_pretrained(exported[0], attn_implementation="eager", **options)
        assert_same_vectors(unit(eager(**arrays).embedding), expected)
        half = transformers.AutoModel.from_pretrained(exported[0], dtype=torch.bfloat16, **options)(**arrays).embedding
    assert half.dtype == torch.float32
    assert (unit(half) * expected).sum(-1).min() > 0.999


def test_positions_that_hold_nothing_count_for_nothing(model, processor, folder):
    arrays = processor([{"title": "a long title of an item"}, "short"])
    tokens, types = arrays["input_ids"], arrays["token_types"]
    with torch.no_grad():
        expected = model(tokens, types).embedding
        gap = torch.zeros(2, 3, dtype=torch.long)
        spread = model(*(torch.cat([array[:, :5], gap, array[:, 5:]], dim=1) for array in (tokens, types))).embedding
        pictured = processor([{"title": "a long title of an item", "image": folder / "plain.png"}])
        without = model(pictured["input_ids"], pictured["token_types"]).embedding
        prompt_alone = model(tokens, torch.where(types == 2, 0, types)).embedding
    np.testing.assert_allclose(spread, expected, atol=1e-6)
    np.testing.assert_allclose(without, expected[:1], atol=1e-6)
    assert expected.abs().max() > 0.1 and not prompt_alone.any()


def test_every_parameter_learns_and_the_audio_statistics_stay(exported, processor, cases):
    model = transformers.AutoModel.from_pretrained(exported[0], trust_remote_code=True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(**processor(cases[0])).embedding.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def as_the_tower_sees(frame, vit):
    return (frame / np.float32(255) - np.float32(vit.image_mean)) / np.float32(vit.image_std)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_of_training(processor, exported, folder, name):
    vit = exported[1].config.model.vit
    expected = as_the_tower_sees(decode_image(PICTURES[name], vit.image_size), vit)
    ours = processor([folder / name])["pixel_values"][0].permute(1, 2, 0)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_jpeg_that_is_scaled_down_differs_by_about_a_level(processor, exported, folder):
    vit = exported[1].config.model.vit
    expected = as_the_tower_sees(decode_image(LARGE, vit.image_size), vit)
    ours = processor([folder / "large.jpg"])["pixel_values"][0].permute(1, 2, 0).numpy()
    levels = np.abs(ours - expected) * np.float32(vit.image_std) * 255
    assert 0 < levels.mean() < 1.0


@pytest.mark.parametrize("name", SOUNDS)
def test_clips_are_those_of_training(processor, exported, folder, name):
    audio = exported[1].config.model.audio
    expected = clip_audio(decode_audio(SOUNDS[name], audio.sample_rate), audio.clip_samples, audio.max_clips)
    extractor = processor.feature_extractor
    mel = extractor(list(expected / 32768), sampling_rate=audio.sample_rate, return_tensors="pt")["input_features"]
    ours = processor([{"audio": folder / name}])["input_features"]
    assert ours.shape == mel.shape and (ours - mel).abs().max() < 0.01  # in dB; a step of 16 bits shows more


def test_tokens_are_those_of_training(processor, exported):
    encoder = make_extractor(exported[1].config).encoder
    texts = ["a query", "<|im_end|>", {"title": " a  title ", "ocr": "", "tags": "a title"}, {"asr": "x" * 9}]
    items = [Item("", text=text) if isinstance(text, dict) else text_item(text) for text in texts]
    for instruction in (DEFAULT_INSTRUCTION, INSTRUCTION, ""):
        arrays = processor(texts, instruction=instruction)
        length = arrays["input_ids"].shape[1]
        for row, item in enumerate(items):
            shown = shown_fields(item, ("title", "asr", "ocr", "nickname", "tags"))
            tokens, types = encoder(instruction, shown, vision=False, audio=False)
            np.testing.assert_array_equal(arrays["input_ids"][row], tokens[:length])
            np.testing.assert_array_equal(arrays["token_types"][row], types[:length])
            assert not types[length:].any()


@pytest.mark.slow
def test_sentence_transformers_encodes_and_saves(exported, cases, tmp_path):
    directory, embedder = exported
    theirs, ours = cases
    model = SentenceTransformer(str(directory), trust_remote_code=True, device="cpu")
    expected = embedder.encode(ours)
    assert_same_vectors(model.encode(theirs, batch_size=4), expected)
    assert_same_vectors(model.encode(theirs[4])[None], expected[4:5])
    assert_same_vectors(model.encode(theirs[:2], prompt=""), embedder.encode(ours[:2], instruction=""))
    cut = embedder.encode(ours, dims=16)
    assert_same_vectors(model.encode(theirs, truncate_dim=16), cut)
    assert_same_vectors(model.encode(theirs, truncate_dim=16, normalize_embeddings=True), cut)
    assert_same_vectors(model.encode(theirs, truncate_dim=32), expected)
    (of_item,) = model.encode(theirs[4:5], truncate_dim=16, output_value=None)
    assert_same_vectors(of_item["sentence_embedding"].numpy()[None], cut[4:5])
    with model.truncate_embeddings(8):
        assert_same_vectors(model.encode(theirs[:2]), embedder.encode(ours[:2], dims=8))
    query = embedder.encode(ours, instruction=INSTRUCTION)
    assert np.abs(query - expected).max() > 0.01
    assert_same_vectors(model.encode(theirs, prompt=INSTRUCTION), query)
    model.prompts["query"] = INSTRUCTION
    assert_same_vectors(model.encode_query(theirs), query)
    assert model.get_embedding_dimension() == 32 and model.max_seq_length == 96

    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert_same_vectors(again.encode_query(theirs), query)
    again.max_seq_length = 40
    assert np.abs(again.encode_query(theirs[1]) - query[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "nothing to embed"),
        (" \x07", "nothing to embed"),
        ({"titel": "x"}, "unknown keys.*titel"),
        ({"title": 3}, "'title' of an item is a text"),
        ({"text": "a", "title": "b"}, "shown bare"),
        ({"image": np.zeros((4, 4, 3), np.uint8), "video": []}, "an image and a video"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "of uint8"),
        ({"video": "film.mp4"}, "A video is a list of frames"),
        ({"video": ["missing.png"]}, "no file 'missing.png'"),
        ({"image": "missing.png"}, "no file 'missing.png'"),
        ({"image": [Image.new("RGB", (4, 4)), Path("missing.png")]}, "no file 'missing.png'"),
        ({"audio": "missing.wav"}, "no file 'missing.wav'"),
        (Path("missing.png"), "no file 'missing.png': check the path.$"),
        (Path("notes.txt"), "no file 'notes.txt'"),
        ("a/missing file.JPG", r"no file 'a/missing file.JPG': check the path, or give {'text': \.\.\.}"),
        ("film.mpg", "no file 'film.mpg'"),
        ("photo.heic", "no file 'photo.heic'"),
        ({"audio": np.zeros(9)}, "sampling_rate"),
        ({"array": np.zeros(0), "sampling_rate": 16_000}, "no samples"),
        ({"array": np.zeros((9, 2)), "sampling_rate": 16_000}, r"\[channels, samples\]"),
        ({"audio_embedding": np.zeros((2, 16))}, "one vector"),
        (3, "not int"),
    ],
)
def test_items_that_cannot_be_used_are_named(processor, item, message):
    with pytest.raises(ValueError, match=message):
        processor([item])


@pytest.mark.parametrize(
    "text",
    ["frame.jpg or frame.png?", "what is .jpg", "a\nframe.jpg", "notes.txt", "x.PNG", "y.m2ts", ".jpg", "z.heic"],
)
def test_a_string_is_taken_for_what_encode_takes_it(processor, text):
    def ids(item):
        return processor([item])["input_ids"].tolist()

    if is_media_path(text):
        with pytest.raises(ValueError, match=f"no file '{text}'"):
            processor([text])
    else:
        assert ids(text) == ids({"text": text})
    assert ids({"text": text}) != ids("other")


def test_suffixes_are_those_of_encode(processor):
    kinds = sys.modules[type(processor).__module__]._KIND_OF
    assert sum(kind != "other" for kind in kinds.values()) == sum(map(len, SUFFIXES.values()))
    for suffix, kind in kinds.items():
        assert is_media_path(f"x{suffix}") and media_kind(f"x{suffix.upper()}") == kind.replace("other", "")


def test_an_instruction_that_leaves_no_room_is_refused(processor):
    with pytest.raises(ValueError, match="max_tokens"):
        processor(["x"], instruction="word " * 100)
