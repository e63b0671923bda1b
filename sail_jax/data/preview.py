"""Previews the filled prompts of every data set and task, with an example record if there is data."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sail_jax.batch import TokenType
from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.features import FeatureExtractor, View
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.prompts import shown_fields
from sail_jax.data.sequence_tables import LatestItems, open_pairs
from sail_jax.data.tables import PairTable
from sail_jax.data.views import retrieval_tasks, side_views, task_views
from sail_jax.errors import BadRecordError
from sail_jax.items import Item, text_item


class Preview(NamedTuple):
    """One side of a data set or a task.

    Attributes:
        name: for example "data.datasets.copair, query".
        view: the view of this side.
        text: the filled template; media appear as <vision x N> and <audio>.
        tokens: the number of tokens, media included; 0 without data.
        problem: why the example cannot be shown; empty if it can.
    """

    name: str
    view: View
    text: str
    tokens: int
    problem: str = ""


def previews(config: Config, row: int = 0) -> Iterator[Preview]:
    """Yields previews of both sides of every training set, then of every evaluation task.

    Args:
        config: the experiment; without `data.dir` the slots of the templates are not filled.
        row: the row of each table that serves as the example.

    Raises:
        SailError: on a wrong pattern or an unknown field.
    """
    extract = make_extractor(config) if config.data.dir else None
    for where, table, split, views, kind in _views(config):
        for side, view in enumerate(views):
            label = f"{where}, {('query', 'target')[side]}"
            if extract is None:
                yield Preview(label, view, config.prompt.template.replace("{instruction}", view.instruction), 0)
                continue
            pairs = open_pairs(place(config.data.dir) / place(table), split, kind)
            yield _example(config, extract, label, view, _item(config, pairs, row % len(pairs), side))


def _views(config: Config) -> Iterator[tuple[str, str, str, tuple[View, ...], str]]:
    """Yields (place in the config, table, split, views, kind) of every training set and task."""
    for name, dataset in config.data.datasets.items():
        yield f"data.datasets.{name}", dataset.table, dataset.split, side_views(config, name)[:2], dataset.kind
    for name in retrieval_tasks(config):
        task = config.eval.tasks[name]
        yield f"eval.tasks.{name}", task.table, task.split, task_views(config, name), "pairs"


def _item(config: Config, pairs: PairTable | LatestItems, row: int, side: int) -> Item:
    pair = pairs[row]
    if side == 0 and pair.query_id is None:
        return text_item(pair.query_text)
    return open_store(config).get(pair.query_id if side == 0 else pair.target_id)


def _example(config: Config, extract: FeatureExtractor, label: str, view: View, item: Item) -> Preview:
    try:
        features = extract(item, view)
    except BadRecordError as error:
        return Preview(label, view, "", 0, str(error))
    media = {
        "vision": f"<vision x {config.model.perceiver.latents}>" if len(features.frames) else "",
        "audio": "<audio>" if len(features.clips) or features.audio_vector is not None else "",
    }
    whole = shown_fields(item, view.fields) if "T" in view.modalities else ""
    read = extract.encoder.tokenizer.decode(features.tokens[features.token_types == TokenType.TEXT])
    cut = len(extract.encoder.tokenizer(whole, add_special_tokens=False)["input_ids"]) > np.sum(
        features.token_types == TokenType.TEXT
    )
    text = f"{read} [cut by config.prompt.max_tokens]" if cut else whole
    filled = config.prompt.template.format(instruction=view.instruction, text=text, **media)
    return Preview(label, view, filled, int(np.sum(features.token_types != TokenType.PAD)))
