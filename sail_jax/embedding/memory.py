"""The error for a user whose devices run out of memory while embedding."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sail_jax.sharding.device_memory import device_memory, is_out_of_memory, out_of_memory

REMEDY = "Lower config.eval.batch_size, raise config.mesh.fsdp or config.mesh.tensor, or take more devices."
_REMEDY_OF_PARAMETERS = "Raise config.mesh.fsdp or config.mesh.tensor, or take more devices."


@contextlib.contextmanager
def explained(params: Callable[[], Any]) -> Iterator[None]:
    """Raises an error that says what to change where a device runs out of memory within it.

    Args:
        params: gives the model's parameters, or their shapes with shardings, if it comes to that.

    Raises:
        SailError: a device ran out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(
            error,
            {"parameters": params()},
            device_memory(jax.local_devices()[0]),
            temporaries="a batch and its activations",
            remedy=REMEDY,
            remedy_of_held=_REMEDY_OF_PARAMETERS,
        ) from error
