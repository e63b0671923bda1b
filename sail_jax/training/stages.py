"""The stages of a run: data sets, weights, losses, learning rate and steps of each.

Source: arXiv 2510.12709, sec. 3.3.1 (content-aware progressive training). A run counts its steps through all stages, so
it has one sequence of checkpoints and one training log, and can resume at any step.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.schema import nearest
from sail_jax.config.training import StageConfig, stage_order
from sail_jax.data.sampler import Sampler
from sail_jax.data.training_set import dataset_weights
from sail_jax.errors import SailError


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: some consecutive steps of a run with their own settings.

    Attributes:
        name: its name; empty in a run without stages.
        begin: steps of the run before the stage.
        config: the experiment with the settings of the stage; `train.steps` is the steps of the run at its end.
        mine: data sets whose hard negatives are mined when the stage begins.
        drawn: number of draws of each data set before the stage; empty for none.
    """

    name: str
    begin: int
    config: Config
    mine: tuple[str, ...] = ()
    drawn: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Returns the steps of the run at the end of the stage."""
        return self.config.train.steps

    @property
    def steps(self) -> int:
        """Returns the number of steps of the stage."""
        return self.end - self.begin


def plan(config: Config, mined: Path) -> list[Stage]:
    """Returns the stages of a run in order: those of `config.stages`, or the whole run as one.

    Args:
        config: the experiment.
        mined: folder of mined hard negatives, STAGE/DATASET.parquet.

    Raises:
        SailError: a stage's name cannot be a folder, or the stage names an unknown data set, has no data set to draw,
            or mines hard negatives of a set that it never draws or more of them than are mined.
    """
    if not config.stages:
        return [Stage("", 0, config)]
    for name, settings in config.stages.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise SailError(f"config.stages has a stage {name!r}; name stages by letters, digits, '_' and '-'.")
        _check_names(config, settings, f"config.stages.{name}")
    if not config.train.progressive:
        return [Stage("", 0, _all_in_one(config))]
    stages, begin = [], 0
    for name in stage_order(config.stages):
        settings = config.stages[name]
        end = begin + settings.steps
        stage_config = _stage_config(config, settings, end, mined / name)
        stages.append(Stage(name, begin, stage_config, settings.mine, _drawn(stages)))
        begin = end
    return stages


def _drawn(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Returns the number of draws of each data set in some stages."""
    if not stages:
        return ()
    last = stages[-1]
    sampler = Sampler([dataset.weight for dataset in last.config.data.datasets.values()], last.config.seed)
    draws = last.config.data.batch_size if last.config.data.sampling == "mixed" else 1
    counts = sampler.counts(last.end * draws) - sampler.counts(last.begin * draws)
    return tuple(int(count) for count in counts + (last.drawn or 0))


def without_mined(stage: Stage) -> Stage:
    """Returns the stage without the hard negatives it will mine, to check it before they exist."""
    datasets = {
        name: dataclasses.replace(dataset, hard_negatives=0) if name in stage.mine else dataset
        for name, dataset in stage.config.data.datasets.items()
    }
    return dataclasses.replace(stage, config=_with_datasets(stage.config, datasets))


def mined_table(mined: Path, dataset: str) -> Path:
    """Returns the path of a data set's hard negatives; `mined` is the folder of the stage."""
    return mined / f"{dataset}.parquet"


def _check_names(config: Config, settings: StageConfig, where: str) -> None:
    for setting, names in (("weights", settings.weights), ("mine", settings.mine)):
        for name in names:
            if name not in config.data.datasets:
                near = nearest(name, config.data.datasets)
                raise SailError(
                    f"{where}.{setting} names {name!r}, but there is no such data set. Did you mean {near}?"
                )
    if settings.weights and not any(weight > 0 for weight in settings.weights.values()):
        raise SailError(f"{where}.weights is {dict(settings.weights)}; give at least one data set a weight above 0.")
    weights = _weights(config, settings)
    never_drawn = [name for name in settings.mine if not weights[name] > 0]
    if settings.mine and settings.hard_negatives > config.mining.per_query:
        raise SailError(
            f"{where}.hard_negatives is {settings.hard_negatives}, more than config.mining.per_query, "
            f"{config.mining.per_query}; raise that, or lower this."
        )
    if never_drawn:
        raise SailError(
            f"{where}.mine names {never_drawn}, which the stage never draws; give them a weight above 0 in it."
        )


def _stage_config(config: Config, settings: StageConfig, end: int, mined: Path) -> Config:
    weights = _weights(config, settings)
    datasets = {
        name: dataclasses.replace(
            dataset,
            weight=weights[name],
            loss_weights={**dataset.loss_weights, **settings.loss_weights},
        )
        for name, dataset in config.data.datasets.items()
    }
    for name in settings.mine:
        table = str(mined_table(mined, name))
        datasets[name] = dataclasses.replace(datasets[name], negatives=table, hard_negatives=settings.hard_negatives)
    optimizer = dataclasses.replace(
        config.optimizer,
        peak=settings.peak or config.optimizer.peak,
        floor=config.optimizer.floor if settings.floor < 0 else settings.floor,
        warmup_steps=config.optimizer.warmup_steps if settings.warmup_steps < 0 else settings.warmup_steps,
    )
    train = dataclasses.replace(config.train, steps=end)
    return _with_datasets(dataclasses.replace(config, optimizer=optimizer, train=train), datasets)


def _weights(config: Config, settings: StageConfig) -> dict[str, float]:
    """Returns {data set: sampling weight} of a stage."""
    if not settings.weights:
        return dataset_weights(config)
    return {name: settings.weights.get(name, 0.0) for name in config.data.datasets}


def _all_in_one(config: Config) -> Config:
    """Returns one stage with as many steps as all, which draws each data set as often as they do in expectation.

    It ignores what the stages mine, their loss weights and their learning rates.
    """
    totals = dict.fromkeys(config.data.datasets, 0.0)
    for settings in config.stages.values():
        weights = _weights(config, settings)
        for name, weight in weights.items():
            totals[name] += settings.steps * weight / max(sum(weights.values()), 1e-30)
    steps = sum(settings.steps for settings in config.stages.values())
    datasets = {
        name: dataclasses.replace(dataset, weight=totals[name]) for name, dataset in config.data.datasets.items()
    }
    return _with_datasets(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps)), datasets)


def _with_datasets(config: Config, datasets: Mapping[str, DatasetConfig]) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=dict(datasets), weights=""))
