"""Turns the text fields of items into token ids: cleaning, field dropping, chat template, tokenizer."""

import copy
import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import tokenizers
import transformers
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from sail_jax.batch import TokenType
from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.config.data import PromptConfig
from sail_jax.config.storage import HUB
from sail_jax.errors import SailError
from sail_jax.files import partial_folder
from sail_jax.items import QUERY_FIELD, TEXT_FIELDS, Item

# Special tokens of the Qwen chat template; trained tokenizers have the same ones.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SLOTS = {"audio": TokenType.AUDIO, "vision": TokenType.VISION, "text": TokenType.TEXT}
_SPACE = re.compile(r"\s+")
_REPEAT = re.compile(r"(.)\1{4,}")


def clean_text(text: str) -> str:
    """Normalises white space, drops control characters, and cuts runs of one character to three.

    Source: arXiv 2510.12709, sec. 3.2.2 (text preprocessing).
    """
    text = _SPACE.sub(" ", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cc")
    return _REPEAT.sub(lambda run: run.group(1) * 3, text).strip()


def shown_fields(item: Item, fields: Sequence[str]) -> str:
    """The text of an item that the model reads: one labelled line per field.

    A free-text query has no label. Fields are cleaned, and a field that repeats another one is left out (arXiv
    2510.12709, sec. 3.2.2).

    Args:
        item: the item.
        fields: a subset of `TEXT_FIELDS`.
    """
    if QUERY_FIELD in item.text:
        return clean_text(item.text[QUERY_FIELD])
    lines: dict[str, str] = {}
    for field in fields:
        text = clean_text(item.text.get(field, ""))
        if text and text not in lines:
            lines[text] = f"{field}: {text}"
    return "\n".join(lines.values())


def drop_fields(item: Item, text: str, dropout: float, rng: np.random.Generator) -> str:
    """Drops lines of the text that `shown_fields` returned, each with probability `dropout`.

    This trains the model for fields that are missing online (arXiv 2510.12709, sec. 3.2.2). An item with nothing but
    text keeps at least one field; a free-text query is returned unchanged.

    Args:
        item: the item.
        text: its text.
        dropout: the probability with which a field is dropped.
        rng: the source of the draws.
    """
    if QUERY_FIELD in item.text or not text or dropout == 0:
        return text
    lines = text.split("\n")
    keep = rng.random(len(lines)) >= dropout
    if not keep.any() and item.modalities == "T":
        keep[rng.integers(len(lines))] = True
    return "\n".join(line for line, kept in zip(lines, keep, strict=True) if kept)


def check_fields(fields: Sequence[str], *, setting: str) -> None:
    """Raises SailError if `fields` has a name that is not a text field; the message names `setting`."""
    unknown = [field for field in fields if field not in TEXT_FIELDS]
    if unknown:
        raise SailError(f"{setting} names unknown text fields {unknown}; the fields are {', '.join(TEXT_FIELDS)}.")


def instruction(config: PromptConfig, own: str) -> str:
    """The instruction of a view: the unified one if the config sets it, else the view's own."""
    return config.unified or own


class PromptEncoder:
    """Fills the chat template and tokenizes it.

    Args:
        config: template and length.
        tokenizer: a fast tokenizer of transformers.
        vision_tokens: positions of an item's vision (the latents of the perceiver).

    Raises:
        SailError: the template lacks a slot or has an unknown one.
    """

    def __init__(
        self, config: PromptConfig, tokenizer: transformers.PreTrainedTokenizerBase, vision_tokens: int
    ) -> None:
        self.max_tokens, self.tokenizer, self.vision_tokens = config.max_tokens, tokenizer, vision_tokens
        self._pieces = re.split(r"\{(\w+)\}", config.template)
        slots = self._pieces[1::2]
        if sorted(slots) != sorted([*_SLOTS, "instruction"]):
            raise SailError(
                f"config.prompt.template has the slots {slots}; it needs {{instruction}}, {{audio}}, {{vision}} and "
                "{text}, each once."
            )
        # Calling a transformers tokenizer changes its settings, which is not safe for threads that share it.
        self._template_backend = _backend(tokenizer, split_special_tokens=False)
        # Users' text must not be able to end a turn of the chat template.
        self._content_backend = _backend(tokenizer, split_special_tokens=True)
        self._literal = functools.lru_cache(maxsize=256)(self._tokenize_literal)

    def __reduce__(self):
        config = PromptConfig(template=self._template(), max_tokens=self.max_tokens)
        return PromptEncoder, (config, self.tokenizer, self.vision_tokens)

    def _template(self) -> str:
        return "".join(f"{{{piece}}}" if i % 2 else piece for i, piece in enumerate(self._pieces))

    def _tokenize_literal(self, text: str) -> tuple[int, ...]:
        return tuple(self._template_backend.encode(text, add_special_tokens=False).ids)

    def _tokenize_content(self, text: str) -> list[int]:
        return self._content_backend.encode(text, add_special_tokens=False).ids

    def _segments(self, instruction: str) -> list[tuple[TokenType, tuple[int, ...]]]:
        """The template in order: runs of prompt tokens, and an empty run for each slot."""
        segments, literal = [], ""
        for i, piece in enumerate(self._pieces):
            if i % 2 == 0:
                literal += piece
            elif piece == "instruction":
                literal += instruction
            else:
                segments += [(TokenType.PROMPT, self._literal(literal)), (_SLOTS[piece], ())]
                literal = ""
        return [*segments, (TokenType.PROMPT, self._literal(literal))]

    def prompt_tokens(self, instruction: str) -> int:
        """The number of tokens of the filled template without text, vision and sound."""
        return sum(len(tokens) for _, tokens in self._segments(instruction))

    def __call__(self, instruction: str, text: str, *, vision: bool, audio: bool) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes one item; see `encode`."""
        tokens, types, _ = self.encode(instruction, text, vision=vision, audio=audio)
        return tokens, types

    def encode(self, instruction: str, text: str, *, vision: bool, audio: bool) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokenizes one item, and counts the tokens of its text that find no room.

        Args:
            instruction: the system prompt.
            text: the text fields; truncated to the remaining length.
            vision: whether the item shows frames; a missing modality takes no position at all.
            audio: whether the item shows sound.

        Returns:
            tokens: [max_tokens] int32 ids, 0 at PAD, VISION and AUDIO positions.
            token_types: [max_tokens] int8, `TokenType`.
            cut: tokens of the text that were left out.

        Raises:
            SailError: prompt and media alone are longer than `config.prompt.max_tokens`.
        """
        segments = self._segments(instruction)
        media = {TokenType.VISION: self.vision_tokens * vision, TokenType.AUDIO: int(audio)}
        fixed = sum(len(tokens) for _, tokens in segments) + sum(media.values())
        room = self.max_tokens - fixed
        if room < 0 or (room == 0 and text):
            raise SailError(
                f"The prompt with its media takes {fixed} tokens and leaves no room for text: raise "
                f"config.prompt.max_tokens (now {self.max_tokens}) or shorten the instruction {instruction[:60]!r}."
            )
        whole = self._tokenize_content(text) if text else []
        content = whole[:room]
        tokens = np.zeros(self.max_tokens, np.int32)
        types = np.zeros(self.max_tokens, np.int8)
        at = 0
        for kind, run in segments:
            if kind == TokenType.TEXT:
                run = content
            elif kind != TokenType.PROMPT:
                run = [0] * media[kind]
            tokens[at : at + len(run)] = run
            types[at : at + len(run)] = kind
            at += len(run)
        return tokens, types, len(whole) - len(content)


def _backend(tokenizer: transformers.PreTrainedTokenizerBase, *, split_special_tokens: bool) -> tokenizers.Tokenizer:
    """A copy of the backend tokenizer whose settings never change, so that threads may share it."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = split_special_tokens
    return backend


def prompt_texts(config: Config) -> list[str]:
    """The filled templates of all views of a config, without content.

    One with an empty instruction if the config has no views.
    """
    views = [*config.data.datasets.values(), *config.eval.tasks.values()]
    own = [text for view in views for text in (view.query_instruction, view.target_instruction)]
    instructions = dict.fromkeys(instruction(config.prompt, text) for text in own or [""])
    slots = dict.fromkeys(_SLOTS, "")
    return [config.prompt.template.format(instruction=text, **slots) for text in instructions]


def train_tokenizer(texts: Iterable[str], vocab_size: int, output: Path) -> None:
    """Trains a byte-level BPE tokenizer with Qwen's special tokens and saves it for transformers.

    Args:
        texts: the corpus, streamed.
        vocab_size: number of tokens, including the 256 bytes and the special tokens.
        output: the directory to write; it appears under its name when it is complete.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[2],
        additional_special_tokens=[SPECIAL_TOKENS[1]],
    )
    with partial_folder(output) as partial:
        fast.save_pretrained(partial)


def _tokenizer_class(directory: Path) -> type:
    """The class that loads a tokenizer: the plain one if the directory names it, else AutoTokenizer.

    `train_tokenizer` writes the name of the plain class.
    AutoTokenizer would find the same class, but imports PyTorch where it is installed, which takes seconds.
    """
    settings = directory / "tokenizer_config.json"
    named = json.loads(settings.read_text()).get("tokenizer_class") if settings.is_file() else None
    plain = transformers.PreTrainedTokenizerFast
    return plain if named == plain.__name__ else transformers.AutoTokenizer


def load_tokenizer(config: PromptConfig, data_dir: Path, vocab_size: int) -> transformers.PreTrainedTokenizerBase:
    """Loads the tokenizer of a config.

    Args:
        config: names a directory (relative to `data_dir` or absolute) or a hub id, "hf://owner/name". Without the
            prefix, an id is only looked for in the cache of the hub, since it may be a folder that does not exist.
        data_dir: the ingested folder.
        vocab_size: rows of the model's embedding table.

    Raises:
        SailError: there is no such tokenizer, or it has more tokens than the model has embeddings.
    """
    local = data_dir / config.tokenizer
    fetch(local)
    from_hub = config.tokenizer.startswith(HUB)
    source = config.tokenizer.removeprefix(HUB) if from_hub else str(_local_folder(local, config.tokenizer))
    try:
        tokenizer = _tokenizer_class(local).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SailError(
            f"The tokenizer {source} cannot be loaded{' from the Hugging Face hub' * from_hub} "
            f"({str(error).splitlines()[0]}). Set config.prompt.tokenizer to a folder that has one."
        ) from error
    if len(tokenizer) > vocab_size:
        raise SailError(
            f"The tokenizer {source} has {len(tokenizer)} tokens, but the model embeds {vocab_size}: set vocab_size of "
            f"config.model.llm (of config.model.bert for a dual tower) to at least {len(tokenizer)}."
        )
    return tokenizer


def _local_folder(folder: Path, name: str) -> Path:
    """Returns the folder of a tokenizer, or what the cache of the hub holds under this name; asks no network."""
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise SailError(
            f"There is no tokenizer at {folder.absolute()}. Set config.prompt.tokenizer to a tokenizer directory or to "
            f"{HUB}OWNER/NAME of the Hugging Face hub, or config.ingest.tokenizer_vocab to train one while ingesting."
        ) from error
