"""Reads the sampling weights that `balance` wrote."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from sail_jax.buckets import fetch
from sail_jax.errors import SailError


def read_weights(path: pathlib.Path, datasets: Sequence[str], setting: str) -> dict[str, float]:
    """Reads the sampling weights of the training sets from a JSON file.

    Its format is {"weights": {data set: weight}, ...}.

    Args:
        path: the file.
        datasets: the data sets of the config; the file must name exactly these.
        setting: the setting that holds the path, for messages.

    Returns:
        Data set -> weight, in the order of `datasets`; the weights need not sum to one.

    Raises:
        SailError: the file is missing or malformed, its data sets are not those of the config, or a weight is negative
            or not finite, or all are zero.
    """
    where = f"{path} ({setting})"
    weights = _weights(path, where)
    missing = [name for name in datasets if name not in weights]
    unknown = [name for name in weights if name not in datasets]
    if missing or unknown:
        lists = [f"leaves out {', '.join(map(repr, missing))}"] * bool(missing)
        lists += [f"names {', '.join(map(repr, unknown))}"] * bool(unknown)
        raise SailError(
            f"{where} was written for other data sets: it {' and '.join(lists)}, while config.data.datasets has "
            f"{', '.join(map(repr, datasets))}. Run `balance` again with this config, or edit the file."
        )
    for name, weight in weights.items():
        if not _is_weight(weight):
            raise SailError(
                f"{where}, field weights.{name}: {weight!r} is not a weight; write a finite number of at least 0."
            )
    if not any(weights.values()):
        raise SailError(f"{where} gives every data set the weight 0; give one of them more, or run `balance` again.")
    return {name: float(weights[name]) for name in datasets}


def _weights(path: pathlib.Path, where: str) -> dict[str, Any]:
    fetch(path)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise SailError(f"There is no file {where}. Write it with `balance`, or empty the setting.") from None
    except (OSError, ValueError) as error:
        raise SailError(f"{where} cannot be read as JSON ({error}). Write it with `balance`.") from error
    weights = values.get("weights") if isinstance(values, dict) else None
    if not isinstance(weights, dict):
        raise SailError(f'{where} has no field "weights" that maps data sets to numbers. Write it with `balance`.')
    return weights


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
