"""The objective: weighs the losses, and owns the learnable temperatures.

Axes: V views, B pairs, S sides, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sail_jax.config import ObjectiveConfig
from sail_jax.errors import SailError
from sail_jax.items import Batch
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.matryoshka import matryoshka
from sail_jax.objectives.negatives import negative_mask

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Matryoshka InfoNCE with one temperature per data set.

    Attributes:
        config: the loss settings.
        datasets: number of training sets.

    Raises:
        SailError: when the temperature at the start lies outside its bounds.
    """

    config: ObjectiveConfig
    datasets: int

    def __post_init__(self) -> None:
        low, start, high = self.config.min_temperature, self.config.temperature, self.config.max_temperature
        if not low <= start <= high:
            raise SailError(
                f"config.objective.temperature is {start}; choose it between min_temperature, {low}, and "
                f"max_temperature, {high}."
            )

    def init(self) -> Params:
        """Parameters of the objective: "log_temperature" [datasets] float32."""
        return {"log_temperature": jnp.full(self.datasets, jnp.log(self.config.temperature), jnp.float32)}

    def project(self, params: Params) -> Params:
        """Brings the temperatures back into their bounds; called after every update.

        Clipping inside the loss instead would stop the gradient at the bound, and a temperature could never return.
        """
        low, high = jnp.log(self.config.min_temperature), jnp.log(self.config.max_temperature)
        return {"log_temperature": jnp.clip(params["log_temperature"], low, high)}

    def __call__(self, params: Params, z: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a global batch.

        Args:
            params: see `init`.
            z: [B, 2, D] embeddings of queries and targets.
            batch: its keys, validity and data sets.

        Returns:
            The loss, [] float32, and metrics.
        """
        log_temperature = params["log_temperature"]
        if not self.config.learn_temperature:
            log_temperature = jax.lax.stop_gradient(log_temperature)
        temperature = jnp.exp(log_temperature)[batch.dataset]
        negatives, valid = negative_mask(batch.item_keys, batch.valid), batch.valid.all(axis=-1)

        def loss(query: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return info_nce(query, target, temperature, negatives, valid, symmetric=self.config.symmetric)

        total, metrics = matryoshka(loss, z[:, 0], z[:, 1], self.config.matryoshka)
        metrics["temperature"] = temperature.mean()
        metrics["valid_pairs"] = valid.sum()
        return total, metrics
