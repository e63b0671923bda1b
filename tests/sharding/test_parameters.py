"""How the full-size model is split, parameter by parameter, against a golden file.

After an intended change, write the file again with `python -m tests.sharding.test_parameters`, and read its diff.
"""

import difflib
import functools
import math
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from sail_jax import config as config_lib
from sail_jax.objectives.objective import make_objective
from sail_jax.sharding.mesh import AXES
from sail_jax.sharding.parameters import path_name
from sail_jax.training.optimizer import make_optimizer
from sail_jax.training.state import abstract_state

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "sail_1b5.txt"
CONFIG = HERE.parents[1] / "configs" / "sail_1b5.py"


@functools.cache
def state():
    config = config_lib.load(CONFIG)
    mesh = AbstractMesh((4, 8, 8), AXES)
    return abstract_state(config, make_objective(config), make_optimizer(config.optimizer), mesh)


def lines(tree):
    """One line per leaf: path, shape, how each dimension is split."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
        yield f"{path_name(path)} {leaf.shape} {spec}"


def test_the_full_size_model_is_split_as_the_golden_file_says():
    expected, found = GOLDEN.read_text().splitlines(), list(lines(state().params))
    difference = "\n".join(difflib.unified_diff(expected, found, "golden", "now", lineterm="", n=0))
    assert not difference, (
        f"{GOLDEN.name} says otherwise; if this is meant, run `python -m tests.sharding.test_parameters`\n{difference}"
    )


def test_moments_are_split_like_their_parameters():
    abstract = state()
    split = set(lines(abstract.params))
    moments = [line for line in lines(abstract.opt_state) if "/mu/" in line or "/nu/" in line]
    of_parameters = [line.split("/mu/")[-1].split("/nu/")[-1] for line in moments]
    frozen = 2  # the statistics of the audio tower's input
    assert len(moments) == 2 * (len(split) - frozen) and set(of_parameters) <= split


def test_a_device_holds_little_more_than_its_share():
    leaves = jax.tree.leaves(state().params)
    whole = sum(leaf.size for leaf in leaves)
    here = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert here < 1.1 * whole / 64


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines(state().params)) + "\n")
