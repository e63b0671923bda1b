"""Copies the weights of torch modules into our parameter trees, and compares activations."""

import functools
import re

import jax
import numpy as np
import torch

from sail_jax.config.training import MeshConfig
from sail_jax.convert.architectures import EXEMPT
from sail_jax.convert.from_hf import load_rows
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import abstract_on_mesh


def randomise(model, seed=0):
    """Draws every parameter of a torch module anew, also those that start as zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Ten times the usual deviation, so that attention and MLPs change the residual stream visibly.
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + noise if "norm" in name.lower() and name.endswith("weight") else noise)
    return model.eval()


def paths(tree):
    """A parameter tree as {path: leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


class StateDict:
    """The tensors of a torch module, read as a checkpoint is."""

    directory = "a module in memory"

    def __init__(self, tensors):
        self.tensors = {name: value.detach().numpy() for name, value in tensors.items()}
        self.shapes = {name: value.shape for name, value in self.tensors.items()}
        self.dtypes = dict.fromkeys(self.tensors, "F32")

    def read(self, name, index=None):
        return self.tensors[name] if index is None else self.tensors[name][index]

    def close(self):
        pass


def copy_weights(rows, tensors, shapes):
    """Fills a tree of our shapes with torch's tensors by a table of weight_map; all of both must be used."""
    abstract = abstract_on_mesh(shapes, make_mesh(MeshConfig(), jax.devices()[:1]))
    # What every CLAP holds as constants, and a fused one for its fusion, has no place in our tree.
    spare = re.compile("|".join((EXEMPT["constant"], EXEMPT["CLAP fusion"])))
    loaded = load_rows(
        StateDict(tensors), rows, "", abstract, left_over=lambda name: "spare" if spare.search(name) else None
    )
    return loaded.params


def copied_params(module, rows, model, *arguments):
    """Variables of our module, initialised on `arguments`, with the weights of a torch module."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    return {"params": copy_weights(rows, model.state_dict(), shapes)}


def random_params(module, *arguments, seed=0):
    """Returns random variables of our module, without compiling its initialisation; no parameter is all 0 or 1."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = (rng.normal(size=leaf.shape) * 0.2).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def run(module, variables, *arguments):
    """Applies a module, compiled once for all tests that use the same settings and shapes."""
    return module.apply(variables, *arguments)


def parameter_count(module, *arguments):
    """Parameters of our module, none of them allocated."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def torch_parameter_count(build):
    """Parameters of the torch module that `build` returns, none of them allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


def record(layers):
    """Returns a list that fills with the outputs of torch modules as they run."""
    outputs = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: outputs.append(output.detach().numpy()))
    return outputs


def assert_close(ours, theirs, tolerance=2e-5):
    """Compares relative to the scale of the reference."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 0.1, "the reference is almost zero, so the comparison says nothing"
    difference = np.abs(ours - theirs).max() / scale
    assert difference <= tolerance, f"relative difference {difference:.2e}"
