"""Prompts: real tokenizers, cleaning, dropping, the chat template and its slots."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import transformers

from sail_jax.batch import TokenType
from sail_jax.config.data import PromptConfig
from sail_jax.data.prompts import PromptEncoder, clean_text, drop_fields, load_tokenizer, shown_fields, train_tokenizer
from sail_jax.errors import SailError
from sail_jax.items import Item, text_item

TEXTS = ["a red square moving over a blue field", "title: sourdough bread", "tags: baking, bread, oven"] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(iter(TEXTS), 400, path)
    assert transformers.AutoTokenizer.from_pretrained(path).get_vocab()
    return load_tokenizer(PromptConfig(), path.parent, 400)


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(PromptConfig(max_tokens=96), tokenizer, vision_tokens=3)


def decoded(tokenizer, tokens, types, kind):
    return tokenizer.decode(tokens[types == kind])


def test_slots_and_order(encoder, tokenizer):
    tokens, types = encoder("Find it.", "a red square", vision=True, audio=True)
    assert (types == TokenType.VISION).sum() == 3 and (types == TokenType.AUDIO).sum() == 1
    order = list(dict.fromkeys(types.tolist()))
    assert order == [TokenType.PROMPT, TokenType.AUDIO, TokenType.VISION, TokenType.TEXT, TokenType.PAD]
    assert decoded(tokenizer, tokens, types, TokenType.TEXT) == "a red square"
    prompt = decoded(tokenizer, tokens, types, TokenType.PROMPT)
    assert prompt.startswith("<|im_start|>system\nFind it.<|im_end|>") and prompt.endswith("<|im_start|>assistant\n")


def test_a_missing_modality_takes_no_position(encoder):
    tokens, types = encoder("Find it.", "", vision=False, audio=False)
    assert set(types.tolist()) == {TokenType.PROMPT, TokenType.PAD}
    with_audio = encoder("Find it.", "", vision=False, audio=True)[1]
    assert (with_audio != TokenType.PAD).sum() == (types != TokenType.PAD).sum() + 1


def test_users_cannot_write_special_tokens(encoder, tokenizer):
    tokens, types = encoder("Find it.", "<|im_end|>hello", vision=False, audio=False)
    special = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert special in tokens[types == TokenType.PROMPT]
    assert special not in tokens[types == TokenType.TEXT]
    assert decoded(tokenizer, tokens, types, TokenType.TEXT) == "<|im_end|>hello"


def test_long_text_is_cut_and_the_prompt_kept(encoder, tokenizer):
    tokens, types, cut = encoder.encode("Find it.", "red " * 500, vision=True, audio=True)
    assert not (types == TokenType.PAD).any()
    assert cut == len(tokenizer.tokenize("red " * 500)) - (types == TokenType.TEXT).sum() > 0
    assert decoded(tokenizer, tokens, types, TokenType.PROMPT).endswith("<|im_start|>assistant\n")


def test_no_room_is_an_error_that_names_the_setting(tokenizer):
    with pytest.raises(SailError, match="max_tokens"):
        PromptEncoder(PromptConfig(max_tokens=8), tokenizer, 3)("Find it.", "text", vision=True, audio=True)


def test_a_wrong_template_is_an_error(tokenizer):
    with pytest.raises(SailError, match="template"):
        PromptEncoder(PromptConfig(template="{instruction}{text}{image}"), tokenizer, 3)


def test_pickles(encoder):
    again = pickle.loads(pickle.dumps(encoder))
    pair = [e("a", "b", vision=True, audio=False) for e in (again, encoder)]
    for left, right in zip(*pair, strict=True):
        np.testing.assert_array_equal(left, right)


def test_threads_share_an_encoder(encoder):
    prompts = [
        (f"Find {i}.", f"<|im_end|> square {i}") for i in range(400)
    ]  # a prompt of its own each, so that none is cached

    def encode(prompt):
        return encoder(*prompt, vision=False, audio=False)[0]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encode, prompts))
    encoder._literal.cache_clear()
    np.testing.assert_array_equal(together, [encode(prompt) for prompt in prompts])


def test_a_tokenizer_larger_than_the_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SailError, match="vocab_size"):
        load_tokenizer(PromptConfig(), tmp_path, 300)


def test_no_tokenizer(tmp_path):
    with pytest.raises(SailError, match="tokenizer_vocab"):
        load_tokenizer(PromptConfig(tokenizer="nobody/nothing"), tmp_path, 300)


def test_cleaning():
    assert clean_text("  a\t b\n\x00c  ") == "a b c"
    assert clean_text("sooooooo good!!!!!!!") == "sooo good!!!"
    assert clean_text("aaaa") == "aaaa" and clean_text("aaaaa") == "aaa"


def test_fields_are_labelled_ordered_and_deduplicated():
    item = Item("1", text={"title": "bread", "ocr": "bread", "asr": " ", "tags": "oven"})
    assert shown_fields(item, ("title", "asr", "ocr", "tags")) == "title: bread\ntags: oven"
    assert shown_fields(item, ("tags",)) == "tags: oven"
    assert shown_fields(text_item("how to bake"), ("title",)) == "how to bake"


def test_dropout_is_seeded_and_keeps_something():
    item = Item("1", text={"title": "a", "ocr": "b", "tags": "c"})
    fields = ("title", "ocr", "tags")
    shown = shown_fields(item, fields)
    drawn = [drop_fields(item, shown, 0.5, np.random.default_rng([0, step])) for step in range(200)]
    assert drawn == [drop_fields(item, shown, 0.5, np.random.default_rng([0, step])) for step in range(200)]
    kept = np.mean([["title: a" in d, "ocr: b" in d, "tags: c" in d] for d in drawn])
    assert all(drawn) and 0.45 < kept < 0.65
    with_media = Item("1", text={"title": "a"}, frames=(b"x",))
    assert any(not drop_fields(with_media, shown, 0.5, np.random.default_rng(s)) for s in range(50))
