"""The learning rate of the quickstart: four peaks, three seeds each."""

from sail_jax.sweeps import Sweep, grid


def sweep() -> Sweep:
    """The sweep."""
    return Sweep(
        base="quickstart",
        axes=[grid("optimizer.peak", [5e-4, 1e-3, 2e-3, 4e-3])],
        seeds=range(3),
        baseline="peak=0.002",
        metric="i2i/recall@10",
    )
