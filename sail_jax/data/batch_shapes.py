"""Computes the shapes of training batches from the config alone, before there is any data."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.data.collate import capacity, collate
from sail_jax.data.features import View, blank_features
from sail_jax.data.token_budget import text_budget, token_room
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.data.training_set import dataset_weights
from sail_jax.data.views import corrects_popularity, dataset_patterns, side_views, teacher_widths

# For English and Qwen's tokenizers, including the tokens of the chat template.
_LETTERS_PER_TOKEN = 4


def batch_kinds(config: Config) -> list[tuple[str, ...]]:
    """The kinds of batches that the config draws, each a tuple of training sets that may occur in it.

    With sampling "specialized", each set with a weight is a kind; with "mixed", all of them together are the only kind.
    """
    drawn = [name for name, weight in dataset_weights(config).items() if weight > 0]
    return [tuple(drawn)] if config.data.sampling == "mixed" else [(name,) for name in drawn]


def media_room(config: Config, views: Sequence[Sequence[View]], modality: str, pairs: int, groups: int) -> int:
    """Length of the flat axis of a modality.

    It depends only on the settings of the data sets, so that it is the same on all hosts.

    Args:
        config: its budgets, or the most frames and clips of an item where a budget is 0.
        views: the views of the sides, for each training set that may occur in the batch.
        modality: "V" or "A".
        pairs: pairs of the batch, or of this host's part of it.
        groups: number of equal groups of pairs; each has its own block of frames and clips.
    """
    budget, most = {
        "V": (config.data.frame_budget, config.model.perceiver.max_frames),
        "A": (config.data.clip_budget, config.model.audio.max_clips),
    }[modality]
    # A mixed batch needs room for the data set that shows the modality on the most sides.
    sides = max(sum(modality in view.modalities for view in shown) for shown in views)
    return capacity(pairs * sides, budget or most, groups)


def batch_shapes(config: Config, names: Sequence[str], shards: int, encodings: Encodings = NO_ENCODINGS) -> Batch:
    """Shapes and types of a global micro-batch in which some training sets may occur.

    They equal those of the batches that `BatchSource` makes.

    Args:
        config: the experiment, or a stage of it.
        names: one of `batch_kinds`.
        shards: data-parallel shards.
        encodings: outputs of frozen towers, which take the place of pixels and of sound.

    Returns:
        A `Batch` of `jax.ShapeDtypeStruct`.
    """
    views = [side_views(config, name) for name in names]
    pairs = config.data.batch_size // config.train.micro_batches
    groups = shards * config.model.media_chunks(pairs // shards)
    sides = max(len(shown) for shown in views)
    one = blank_pair(config, sides, teacher_widths(config, names), encodings)
    if corrects_popularity(config, names):
        one = one._replace(log_frequency=np.zeros((1, sides), np.float32))
    if config.data.encode_once:
        one = one._replace(media_item=np.zeros((1, sides), np.int32))
    settings = config.data.datasets[names[0]]
    if settings.kind == "sequences":
        one = _of_sequences(one, settings)
    frames, clips = (media_room(config, views, modality, pairs, groups) for modality in "VA")
    return shapes_of_batch(one, pairs, frames, clips)


def blank_pair(
    config: Config, sides: int, teachers: Mapping[str, int] = {}, encodings: Encodings = NO_ENCODINGS
) -> Batch:
    """Returns a batch of one pair of blanks, with the types of any batch and all axes but the first.

    Args:
        config: the experiment.
        sides: sides of the pair.
        teachers: widths of ID embeddings by name, as in `collate`.
        encodings: as in `batch_shapes`.
    """
    one, _ = collate(
        [[blank_features(config, encodings)] * sides],
        [0],
        [None],
        groups=1,
        frame_capacity=0,
        clip_capacity=0,
        audio_width=config.model.audio.projection,
        teachers=teachers,
    )
    return one


def shapes_of_batch(one: Batch, pairs: int, frames: int, clips: int) -> Batch:
    """Returns the abstract arrays of a batch: these sizes of the first axes, the other axes of `one`."""
    return jax.tree.map(
        lambda array, length: jax.ShapeDtypeStruct((length, *array.shape[1:]), array.dtype),
        one,
        one.by_axis(pairs, frames, clips),
    )


def _of_sequences(one: Batch, settings: DatasetConfig) -> Batch:
    """The batch of one row with the shapes of sequences."""
    return one._replace(
        members=np.zeros((1, 1 + settings.history), np.int32),
        seen_keys=np.zeros((1, settings.history + settings.seen, 2), np.uint32),
        item_keys=one.item_keys[:, [0, 0]],
        text_keys=one.text_keys[:, [0, 0]],
        valid=one.valid[:, [0, 0]],
        log_frequency=None if one.log_frequency is None else one.log_frequency[:, [0, 0]],
    )


def estimated_token_room(config: Config, names: Sequence[str], shards: int) -> int | None:
    """Estimates the token capacity of a shard from the config alone.

    `BatchSource` counts the tokens of prompts; this function estimates them from their numbers of characters.

    Args:
        config: the experiment, or a stage of it.
        names: one of `batch_kinds`.
        shards: data-parallel shards.

    Returns:
        Tokens, or None if the model does not pack.
    """
    budget = text_budget(config)
    if not budget:
        return None
    pairs = config.data.batch_size // config.train.micro_batches // shards
    patterns = [pattern for name in names for pattern in dataset_patterns(config, name)]
    views = [side_views(config, name) for name in names]
    template = len(config.prompt.template)
    return token_room(
        patterns,
        views,
        pairs=pairs,
        budget=budget,
        latents=config.model.perceiver.latents,
        prompt_tokens=lambda instruction: (template + len(instruction)) // _LETTERS_PER_TOKEN,
    )
