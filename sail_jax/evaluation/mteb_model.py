"""Wraps a run or an export as a model of mteb, version 2 (github.com/embeddings-benchmark/mteb).

    import mteb
    from sail_jax.evaluation.mteb_model import mteb_model

    mteb.evaluate(mteb_model("runs/glyphs"), mteb.get_tasks(["NFCorpus"]))

Texts, pictures and sound are embedded, and a task that shows anything else is refused; mteb's prompts become the
instructions of the model.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.convert.model_card import prompts as trained_prompts
from sail_jax.data.media.sound import encode_audio
from sail_jax.embedding.embedder import Embedder, check_dims, load
from sail_jax.errors import SailError
from sail_jax.runs.fingerprint import fingerprint

try:
    from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise SailError("mteb is not installed: pip install 'sail_jax[mteb]'.") from error

_Batches = Iterable[Mapping[str, list[Any]]]
_MODALITIES, _NOT_SHOWN = ("text", "image", "audio"), ("video",)


def mteb_model(
    path: str | Path,
    *,
    dims: int | None = None,
    prompts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> AbsEncoder:
    """Returns the model of a run or an export, as `mteb.evaluate` takes it.

    Args:
        path: a run directory, or an export, which sentence-transformers loads.
        dims: number of leading dimensions to keep; None for all.
        prompts: key -> instruction, in addition to those used in training ("query" and "document"). As everywhere in
            mteb, a key is a task ("NFCorpus"), a type of task ("Retrieval"), a side ("query"), or "TASK-SIDE".
        trust_remote_code: whether the Python files of an export, which load it, may be run.

    Raises:
        SailError: `path` is neither a run nor an export, the code of an export is not trusted, or the model has fewer
            dimensions.
    """
    if not (Path(path) / "modules.json").is_file():
        return MtebModel(load(path), name=Path(path).resolve().name, dims=dims, prompts=prompts)
    if not trust_remote_code:
        raise SailError(
            f"{path} is an export, which the Python files in it load: give trust_remote_code=True if you trust them."
        )
    model = SentenceTransformer(str(path), trust_remote_code=True, truncate_dim=dims)
    wrapped = ExportedModel(model, model_prompts=_sides(model.prompts) | dict(prompts or {}))
    wrapped.mteb_model_meta = wrapped.mteb_model_meta.model_copy(update={"modalities": list(_MODALITIES)})
    return wrapped


class _Model(AbsEncoder):
    """What a run and an export have in common as models of mteb: how a side of a task is embedded."""

    def encode(
        self,
        inputs: _Batches,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeds one side of a task.

        Args:
            inputs: batches, column -> values; "text" (titles and bodies joined by mteb), "image" and "audio" are read.
            task_metadata: the task; it and `prompt_type` choose the instruction.
            hf_split: not read.
            hf_subset: not read.
            prompt_type: "query", "document" or None.
            **kwargs: "batch_size" and "show_progress_bar" are read.

        Returns:
            [items, dims] float32, rows of unit length.

        Raises:
            SailError: a "precision" other than float32 is asked of a run, or the task shows videos.
            BadRecordError: an item cannot be used.
        """
        key = self.get_prompt_name(task_metadata, prompt_type)
        side = "" if prompt_type is None else prompt_type.value
        return self._embed(inputs, task_metadata.name, side, None if key is None else self.model_prompts[key], kwargs)

    @abc.abstractmethod
    def _embed(self, inputs: _Batches, task: str, side: str, instruction: str | None, options: dict) -> np.ndarray:
        """Embeds a side of a task, "query", "document" or "", under an instruction, None for that of the side."""


class ExportedModel(_Model, SentenceTransformerEncoderWrapper):
    """mteb's wrapper of sentence-transformers, which leaves out no column and takes no text for a path."""

    def _embed(self, inputs: _Batches, task: str, side: str, instruction: str | None, options: dict) -> np.ndarray:
        sides = {"": self.model.encode, "query": self.model.encode_query, "document": self.model.encode_document}
        options = {"prompt": instruction} | options | {"show_progress_bar": False}
        batches = (list(_items([batch], task, _as_dict)) for batch in inputs)
        return np.concatenate([sides[side](batch, **options) for batch in batches])


class MtebModel(_Model):
    """Implements mteb's encoder protocol for an embedder.

    Args:
        embedder: the model.
        name: its name in results, after "sail_jax/".
        dims: number of leading dimensions to keep; None for all.
        prompts: see `mteb_model`.

    Raises:
        SailError: the model has fewer dimensions.
    """

    def __init__(
        self, embedder: Embedder, *, name: str, dims: int | None = None, prompts: Mapping[str, str] | None = None
    ) -> None:
        self.model = embedder
        self._dims = check_dims(dims, embedder.width)
        self.model_prompts = _sides(trained_prompts(embedder.config)) | dict(prompts or {})
        meta = {
            "name": f"sail_jax/{name}",
            "revision": fingerprint(embedder.params),
            "framework": ["JAX"],
            "modalities": list(_MODALITIES),
            "embed_dim": self._dims,
            "max_tokens": embedder.config.prompt.max_tokens,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": True,
        }
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=meta)

    def _embed(self, inputs: _Batches, task: str, side: str, instruction: str | None, options: dict) -> np.ndarray:
        if options.get("precision", "float32") != "float32":
            raise SailError("precision is float32: sail_jax stores other types with the verb `embed --dtype`.")
        return self.model.encode(
            _items(inputs, task, _encoded),
            dims=self._dims,
            batch_size=options.get("batch_size"),
            instruction=instruction,
            show_progress=options.get("show_progress_bar", False),
        )


def _items(
    batches: Iterable[Mapping[str, list[Any]]], task: str, sound: Callable[[Any, int], Any]
) -> Iterator[dict[str, Any]]:
    """Yields the items of batches as dicts; `sound` makes one of samples and their rate."""
    for batch in batches:
        for name in _NOT_SHOWN:
            if any(value is not None for value in batch.get(name, ())):
                raise SailError(f"The task {task} shows {name}s, which this wrapper gives to no model: leave it out.")
        columns = {name: batch[name] for name in _MODALITIES if name in batch}
        for values in zip(*columns.values(), strict=True):
            item = dict(zip(columns, values, strict=True))
            if (heard := item.get("audio")) is not None:
                item["audio"] = sound(heard["array"], heard["sampling_rate"])
            yield item


def _encoded(samples: Any, rate: int) -> bytes:
    """Encodes samples, [n] or [channels, n]."""
    return encode_audio(np.asarray(samples).T, int(rate))


def _as_dict(samples: Any, rate: int) -> dict[str, Any]:
    return {"array": samples, "sampling_rate": rate}


def _sides(prompts: Mapping[str, str]) -> dict[str, str]:
    """Returns the prompts of queries and documents; the others are for tasks that mteb does not know."""
    return {side: prompts[side] for side in ("query", "document") if side in prompts}
