"""Many runs of a config: declared in a file, checked, launched, watched."""

from sail_jax.sweeps.declare import Axis, Search, Sweep, draws, grid, load, variants, zipped
from sail_jax.sweeps.distributions import integers, log_uniform, uniform
from sail_jax.sweeps.expand import Member, expand
from sail_jax.sweeps.folder import SweepFolder, read

__all__ = [
    "Axis",
    "Member",
    "Search",
    "Sweep",
    "SweepFolder",
    "draws",
    "expand",
    "grid",
    "integers",
    "load",
    "log_uniform",
    "read",
    "uniform",
    "variants",
    "zipped",
]
