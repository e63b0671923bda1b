"""Declares every setting of an experiment with type, default and meaning; loads and saves configs.

The dataclasses of this package are the only declarations of settings, a file per subject; `schema` declares and checks
their fields. An experiment file (`configs/*.py`) starts from `default_config()`, a locked `ml_collections.ConfigDict`
of the same keys, and changes some of them; the command line changes single keys; `build()` turns the result into the
frozen dataclasses that the code reads. Unknown keys are errors in all three places. `preset()` is another start: a
model of some size with what trains it, and no data (`configs/presets/*.py`), or a packaged experiment.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import pathlib
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from sail_jax.buckets import address, place
from sail_jax.config.curation import BalancingConfig, MiningConfig
from sail_jax.config.data import DataConfig, IngestConfig, PromptConfig, SyntheticConfig
from sail_jax.config.evaluation import EvalConfig
from sail_jax.config.log_pairs import BuildersConfig
from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.config.logs import LogsConfig
from sail_jax.config.model import ModelConfig
from sail_jax.config.schema import build_settings, meanings, nearest, override, section, setting, to_dict
from sail_jax.config.suggestions import similar_keys
from sail_jax.config.training import LoraConfig, MeshConfig, ObjectiveConfig, OptimizerConfig, StageConfig, TrainConfig
from sail_jax.errors import SailError
from sail_jax.files import commit_json


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of an experiment."""

    seed: int = setting(0, "seed of every random draw, together with the step", low=0, below=2**31)
    model: ModelConfig = section(ModelConfig, "the model")
    init_from: dict[str, str] = setting(
        {},
        "part of the model ('llm', 'vit', 'audio', 'perceiver', 'vision_adapter', 'audio_adapter', or 'model' for all; "
        "of a dual tower 'bert', 'vit', 'audio') -> checkpoint it starts from: a Hugging Face directory, or "
        "'hf://OWNER/NAME' of its hub; "
        "other parts are initialised randomly",
    )
    init_allow_bin: bool = setting(
        False, "whether `init_from` may read pickled weights (.bin) if a checkpoint has no others"
    )
    prompt: PromptConfig = section(PromptConfig, "prompts and tokenizer")
    data: DataConfig = section(DataConfig, "the input pipeline")
    ingest: IngestConfig = section(IngestConfig, "ingestion", may_change=True)
    synthetic: SyntheticConfig = section(SyntheticConfig, "the generated world", may_change=True)
    logs: LogsConfig = section(LogsConfig, "a recommender's logs")
    builders: BuildersConfig = section(BuildersConfig, "pair tables from logs")
    sequences: SequencesConfig = section(SequencesConfig, "sequence tables from logs")
    objective: ObjectiveConfig = section(ObjectiveConfig, "the loss")
    optimizer: OptimizerConfig = section(OptimizerConfig, "the optimiser")
    lora: LoraConfig = section(LoraConfig, "low-rank adapters")
    train: TrainConfig = section(TrainConfig, "the training loop")
    stages: dict[str, StageConfig] = setting(
        {}, "stages by name, run in the order of their names; their steps replace train.steps; empty for one stage"
    )
    mining: MiningConfig = section(MiningConfig, "hard negative mining")
    balancing: BalancingConfig = section(BalancingConfig, "balancing of the training sets", may_change=True)
    mesh: MeshConfig = section(MeshConfig, "the device mesh", may_change=True)
    eval: EvalConfig = section(EvalConfig, "evaluation", may_change=True)


_PRESETS = "presets"  # the folder in configs/


def packaged() -> list[str]:
    """Returns the names of packaged experiments, which `load` and `preset` take."""
    return sorted(path.stem for path in packaged_folder().glob("*.py"))


def presets() -> list[str]:
    """Returns the names of the presets, which `load` and `preset` take."""
    return sorted(path.stem for path in (packaged_folder() / _PRESETS).glob("*.py"))


def packaged_folder() -> pathlib.Path:
    """Returns configs/: inside the package if it was installed, next to it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def total_steps(config: Config) -> int:
    """Returns the number of optimiser steps of a whole run."""
    return sum(settings.steps for settings in config.stages.values()) if config.stages else config.train.steps


def default_config() -> ml_collections.ConfigDict:
    """Returns the defaults as a locked ConfigDict, which experiment files change and return."""
    config = ml_collections.ConfigDict(to_dict(Config()))
    # A ConfigDict sorts its keys and takes no dots in them; patterns of parameters have dots, and their order counts.
    config.optimizer = ml_collections.ConfigDict(to_dict(OptimizerConfig()), convert_dict=False)
    config.lock()
    _unlock_mappings(config)
    return config


def preset(name: str) -> ml_collections.ConfigDict:
    """Returns the settings of a preset or of a packaged experiment, for an experiment file to change.

    Args:
        name: one of `presets` or of `packaged`.

    Raises:
        SailError: there is no such name; the message lists them.
    """
    path = _shipped(name)
    if path is None:
        known = [*presets(), *packaged()]
        raise SailError(f"There is no preset {name!r}. Did you mean {nearest(name, known)}?")
    config = default_config()
    config.update(to_dict(load(path)))
    return config


def _shipped(name: str) -> pathlib.Path | None:
    """Returns the file of a preset or of a packaged experiment."""
    files = (folder / f"{name}.py" for folder in (packaged_folder() / _PRESETS, packaged_folder()))
    return next(filter(pathlib.Path.is_file, files), None)


def _unlock_mappings(config: ml_collections.ConfigDict) -> None:
    """Unlocks mappings with keys of the user's choice (data sets, tasks, columns), which start empty."""
    for value in config.values():
        if isinstance(value, ml_collections.ConfigDict):
            _unlock_mappings(value)
            if not len(value):
                value.unlock()


def build(values: Mapping[str, Any]) -> Config:
    """Turns nested mappings into a checked `Config`.

    Args:
        values: a ConfigDict or a plain dict; keys left out take their defaults.

    Raises:
        SailError: a key is unknown (the message names the nearest valid ones), or a value has the wrong type or is
            outside its limits.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return build_settings(Config, values, "config")


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Reads an experiment file and applies overrides.

    Args:
        path: a Python file with `get_config()`, or the `config.json` that a run saved, in which `data.dir` is relative
            to the run, or else to the working directory. Where there is no such file,
            "quickstart", "quickstart.py" and "configs/quickstart.py" name a packaged experiment (see `packaged`); a
            preset likewise.
        overrides: words of the form "a.b=value"; the value is a Python literal, or else a string.

    Raises:
        SailError: the file cannot be read, or a key or a value is wrong.
    """
    values = _read(pathlib.Path(path))
    if pathlib.Path(path).suffix != ".json":
        return build(override(Config, values, overrides))
    try:
        build(values)
    except SailError as error:
        raise SailError(f"{path} was written by another version, or changed by hand: {error} Mend it there.") from error
    return build(override(Config, values, overrides))


def _read(path: pathlib.Path) -> dict[str, Any]:
    path = _find(path)
    if path.suffix == ".json":
        try:
            return _placed(_without_forgotten(json.loads(path.read_text())), path)
        except (ValueError, RecursionError) as error:
            raise SailError(f"{path} is not valid JSON ({error}). Repair it, or name the experiment file.") from error
    config = call_in_file(path, "get_config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise SailError(f"{path} has no get_config() that returns a ConfigDict; start from default_config().")
    return config.to_dict()


def call_in_file(path: pathlib.Path, function: str, *arguments: Any) -> Any:
    """Runs a Python file of the user; returns what its function returns, None if it has no such function.

    Args:
        path: the file.
        function: the function.
        arguments: what it is called with.

    Raises:
        SailError: it is no Python file, or its code fails; the message names the line.
    """
    spec = importlib.util.spec_from_file_location(f"sail_jax_config_{path.stem}", path)
    if spec is None:
        raise SailError(f"{path} is not a config file; give a Python file with {function}().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*arguments) if hasattr(module, function) else None
    except Exception as error:  # the file is the user's code, and may raise anything
        raise SailError(_failure(error, path)) from error


# How the builders of earlier versions cut their work into parts.
_FORGOTTEN = (("builders", "partition_rows"), ("sequences", "rows_per_part"))


def _without_forgotten(values: Any) -> Any:
    """Returns saved settings without those of earlier versions that decided no result, and are gone."""
    for group, name in _FORGOTTEN:
        if isinstance(values, dict) and isinstance(values.get(group), dict):
            values[group].pop(name, None)
    return values


def _placed(values: Any, path: pathlib.Path) -> Any:
    """Returns the settings of a run with the `data.dir` that is there relative to the run, if it is."""
    data = values.get("data") if isinstance(values, dict) else None
    if isinstance(data, dict) and isinstance(data.get("dir"), str) and data["dir"] and not address(place(data["dir"])):
        folder = path.absolute().parent / data["dir"]
        with contextlib.suppress(OSError, ValueError):  # no name of a folder
            if folder.is_dir() or address(pathlib.Path(os.path.normpath(folder))):
                data["dir"] = os.path.normpath(folder)
    return values


def _find(path: pathlib.Path) -> pathlib.Path:
    """Returns the file of a path, or of the packaged experiment that it names."""
    if path.is_file():
        return path
    shipped = _shipped(path.stem)
    if str(path.parent) in (".", "configs", f"configs/{_PRESETS}") and path.suffix in ("", ".py") and shipped:
        return shipped
    shown = [*packaged(), *presets()]
    names = dict.fromkeys([*(file.name for file in path.parent.glob("*.py")), *(f"{name}.py" for name in shown)])
    near = difflib.get_close_matches(f"{path.stem}.py", names, n=3)
    raise SailError(
        f"There is no config file {path}."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" These come with the package: the experiments {', '.join(packaged())}; the presets {', '.join(presets())}."
    )


# The error messages of a ConfigDict for setting and for reading an unknown key.
_UNKNOWN_KEY = re.compile(r'Key "(?P<set>\w+)" does not exist|instead of "(?P<read>\w+)"')


def _failure(error: Exception, path: pathlib.Path) -> str:
    """Returns the message for an error in an experiment file, with its line if it is known."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path.absolute())]
    place = f"{path}, line {frames[-1].lineno}" if frames else str(path)
    reason = error.args[0] if isinstance(error, KeyError | AttributeError) and error.args else error
    unknown = _UNKNOWN_KEY.search(str(reason))
    if unknown is None:
        remedy = ". Set it to a dict first, as in config.data.datasets = {'copair': {...}}." * bool(
            re.fullmatch(r"[\"']+\w+[\"']+", str(reason))
        )
        return f"{place}: {type(error).__name__}: {reason}{remedy}"
    key = unknown["set"] or unknown["read"]
    # The source line has the full path of the key: config.model.llm.KEY.
    written = re.search(rf"\.((?:\w+\.)*{key})\b", (frames[-1].line or "") if frames else "")
    key = written[1] if written else key
    likely = similar_keys(key, [name.removeprefix("config.") for name, *_ in meanings(Config)])
    named = " or ".join(f"config.{name}" for name in likely)
    remedy = f"Did you mean {named}?" if likely else "`describe --settings` lists all settings."
    return f"{place}: there is no setting {key}. {remedy}"


def save(config: Config, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON that `load` reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_json(path, to_dict(config))
