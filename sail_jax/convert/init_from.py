"""The initial parameters of training: towers from checkpoints (`config.init_from`), others random."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transformers
from jax.sharding import Mesh, Sharding
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.model import ModelConfig
from sail_jax.config.schema import to_dict
from sail_jax.convert.architectures import EXPORTED_TYPE
from sail_jax.convert.from_hf import TOWERS, Loaded, check_settings, load_rows, load_tower, read_json
from sail_jax.convert.sources import find_checkpoint
from sail_jax.convert.weight_files import WeightFiles
from sail_jax.convert.weight_map import OWN_PARTS
from sail_jax.data.prompts import load_tokenizer
from sail_jax.errors import SailError
from sail_jax.models.model import abstract_params, init_params
from sail_jax.progress import NameColumn, Progress
from sail_jax.sharding.parameters import shardings_of

# Keys of `config.init_from` by kind of model; "model" stands for all parts.
PARTS = {
    "fusion": ("llm", "vit", "audio", *OWN_PARTS),
    "dual_tower": ("bert", "vit", "audio", "vision_adapter", "audio_adapter", "text_adapter"),
}
# Part -> the setting of the forward pass that it was trained with: key in an export's config.json, our setting, and the
# value of exports without the key.
_FORWARD = {"audio_adapter": ("normalize_sound", "audio.normalize", False), "llm": ("pool_prompt", "pool_prompt", True)}


@dataclasses.dataclass(frozen=True)
class InitReport:
    """The origin of the initial parameters.

    Attributes:
        loaded: part -> the result of reading it.
        fresh: parts with random initial values.
    """

    loaded: Mapping[str, Loaded]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for part, loaded in self.loaded.items():
            notes = [f"{loaded.tensors} tensors"]
            notes += [f"{name} resized" for name in loaded.resized]
            notes += [f"{count} left over ({reason})" for reason, count in loaded.left_over.items()]
            lines.append(f"{part}: loaded from {loaded.source}; {', '.join(notes)}")
        return "\n".join([*lines, *(f"{part}: initialised fresh" for part in self.fresh)])


def initial_params(config: Config, mesh: Mesh) -> tuple[Any, InitReport]:
    """The parameters of the model at step 0, each leaf on its shards.

    Args:
        config: its `init_from` maps parts of the model to checkpoints.
        mesh: the mesh for the parameters.

    Raises:
        SailError: a part is unknown, or a checkpoint cannot be found or does not fit.
    """
    sources = check_sources(config)
    abstract = abstract_params(config, mesh)
    size = sum(len(jax.tree.leaves(abstract[part])) for part in sources)
    with _progress() as bar:
        task = bar.add_task("read checkpoints", total=size, visible=bool(sources))
        loaded = {
            part: _load(part, directory, config, abstract[part], lambda _: bar.advance(task))
            for part, directory in sources.items()
        }
    fresh = {part: shapes for part, shapes in abstract.items() if part not in loaded}
    drawn = _draw(config, fresh) if fresh else {}
    params = {part: loaded[part].params if part in loaded else drawn[part] for part in abstract}
    return params, InitReport(loaded, tuple(fresh))


def check_sources(config: Config) -> dict[str, Path]:
    """Part -> directory of its checkpoint, for all parts in `config.init_from`; reads no weights.

    Raises:
        SailError: a part is unknown, or a checkpoint cannot be found or needs another config.
    """
    directories = {}
    for part, source in _sources(config).items():
        directory = directories[part] = find_checkpoint(source, allow_bin=config.init_allow_bin)
        if (directory / "adapter").is_dir() or (directory / "adapter_config.json").is_file():
            raise SailError(
                f"config.init_from.{part}: {directory} holds unmerged LoRA adapters, and its weights are those of the "
                "base model. Export without --adapters, or merge them."
            )
        if part in TOWERS:
            check_settings(directory, part, getattr(config.model, part))
        _check_forward(directory, part, config)
    return directories


def _check_forward(directory: Path, part: str, config: Config) -> None:
    """Checks the setting that a part of an export was trained with, beside its sizes."""
    values = read_json(directory / "config.json")
    if part not in _FORWARD or values.get("model_type") != EXPORTED_TYPE:
        return
    key, setting, before = _FORWARD[part]
    theirs, ours = values.get(key, before), functools.reduce(getattr, setting.split("."), config.model)
    if theirs != ours:
        raise SailError(
            f"config.init_from.{part}: {directory} was not trained with config.model.{setting}={ours}; set "
            f"config.model.{setting}={theirs}."
        )


def check_tokenizer(config: Config) -> None:
    """Checks that the text tower's checkpoint and the training data use the same vocabulary.

    Raises:
        SailError: the checkpoint of the LLM or of BERT has a tokenizer with another vocabulary than
            `config.prompt.tokenizer`.
    """
    tower = config.model.text_tower
    source = _sources(config).get(tower)
    directory = source and find_checkpoint(source, allow_bin=config.init_allow_bin)
    if not directory or not (directory / "tokenizer.json").is_file():
        return
    theirs = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    ours = load_tokenizer(config.prompt, place(config.data.dir), config.model.text_vocab)
    if theirs.get_vocab() != ours.get_vocab():
        raise SailError(
            f"The {tower} tower of {directory} was trained with another tokenizer than config.prompt.tokenizer, "
            f"{config.prompt.tokenizer}: set config.prompt.tokenizer={directory.absolute()}."
        )


def _sources(config: Config) -> dict[str, str]:
    """Part -> checkpoint; a part's own entry overrides "model"."""
    init_from, kind = config.init_from, config.model.kind
    unknown = [part for part in init_from if part not in (*PARTS[kind], "model")]
    if unknown:
        raise SailError(
            f"config.init_from names unknown parts {unknown} of a model of kind {kind!r}; choose from "
            f"{', '.join((*PARTS[kind], 'model'))}."
        )
    everything = dict.fromkeys(PARTS[kind], init_from["model"]) if "model" in init_from else {}
    sources = everything | {part: source for part, source in init_from.items() if part != "model"}
    own = [part for part in sources if part not in TOWERS]
    if own and kind == "dual_tower":
        raise SailError(
            f"config.init_from names {', '.join(own)}, but no checkpoint has these parts of a dual tower, because it "
            "is not exported. Name bert, vit and audio one by one; the other parts are initialised at random."
        )
    return sources


def _load(part: str, directory: Path, config: Config, abstract: Any, progress: Callable[[int], None]) -> Loaded:
    allow = {"allow_bin": config.init_allow_bin, "progress": progress}
    if part in TOWERS:
        return load_tower(directory, part, getattr(config.model, part), abstract, **allow)
    return _load_own(directory, part, config, abstract, **allow)


def _load_own(
    directory: Path, part: str, config: Config, abstract: Any, *, allow_bin: bool, progress: Callable[[int], None]
) -> Loaded:
    """Loads a part that only directories exported by us have."""
    values = read_json(directory / "config.json")
    if values.get("model_type") != EXPORTED_TYPE:
        raise SailError(
            f"config.init_from.{part}: {directory} is not an exported sail_jax model, and only those have this part."
        )
    if part == "perceiver":
        theirs = values.get("perceiver_config")
        if not isinstance(theirs, dict):
            raise SailError(f"{directory / 'config.json'} has no perceiver_config. Export the model again.")
        wrong = [
            f"config.model.perceiver.{key}={theirs[key]!r} (now {value!r})"
            for key, value in to_dict(config.model.perceiver).items()
            if key in theirs and theirs[key] != value
        ]
        if wrong:
            raise SailError(f"The perceiver differs from that of {directory}; set {', '.join(wrong)}.")
    files = WeightFiles(directory, allow_bin=allow_bin)
    try:
        inside = f"{part}."
        return load_rows(
            files,
            OWN_PARTS[part](),
            inside,
            abstract,
            left_over=lambda name: None if name.startswith(inside) else "other parts of the model",
            progress=progress,
        )
    finally:
        files.close()


def _draw(config: Config, abstract: Any) -> Any:
    """Random initial values for the parts in `abstract`; other parts are not computed."""
    shardings, tree = jax.tree.flatten(shardings_of(abstract))
    return _drawing(config.model, tree, tuple(shardings))(np.int32(config.seed))


@functools.lru_cache(maxsize=4)  # training and the evaluation of the untrained model share the program
def _drawing(config: ModelConfig, tree: jax.tree_util.PyTreeDef, shardings: tuple[Sharding, ...]) -> Callable:
    """The compiled function of a seed that draws the parts in `tree`."""
    wanted = jax.tree.unflatten(tree, shardings)

    def draw(seed: jax.Array) -> Any:
        params = init_params(config, seed)
        return {part: params[part] for part in wanted}

    return jax.jit(draw, out_shardings=wanted)


def _progress() -> Progress:
    columns = [NameColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, disable=jax.process_index() != 0, refresh_per_second=2)
