"""Copies the weights of a torch module into our parameter trees by a table, and compares activations.

A table maps the path of our parameter to (torch name, how). A torch name with "{}" stands for one name per layer; the
arrays are stacked on a leading axis. Every parameter of ours and every one of torch's must be used exactly once.
"""

import functools

import jax
import numpy as np
import torch

HOW = {
    "same": lambda weight: weight,
    "linear": lambda weight: weight.T,
    # [D, 3, rows, columns] of a strided convolution -> [rows * columns * 3, D]
    "patches": lambda weight: weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]),
}


def linear(ours, theirs, bias):
    """The rows of a table for one dense layer."""
    rows = {f"{ours}/kernel": (f"{theirs}.weight", "linear")}
    return rows | ({f"{ours}/bias": (f"{theirs}.bias", "same")} if bias else {})


def norm(ours, theirs, bias=False):
    """The rows of a table for one norm."""
    rows = {f"{ours}/scale": (f"{theirs}.weight", "same")}
    return rows | ({f"{ours}/bias": (f"{theirs}.bias", "same")} if bias else {})


def randomise(model, seed=0):
    """Draws every parameter of a torch module anew, also those that start as zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Ten times the usual deviation, so that attention and MLPs change the residual stream visibly.
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def paths(tree):
    """A parameter tree as {path: leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def copy_weights(table, state_dict, ours):
    """Fills a tree of our shapes with torch's weights."""
    weights = {name: value.detach().numpy() for name, value in state_dict.items()}
    unused, copied = set(weights), {}
    for path, leaf in paths(ours).items():
        name, how = table[path]
        names = [name.format(layer) for layer in range(leaf.shape[0])] if "{}" in name else [name]
        arrays = [HOW[how](weights[name]) for name in names]
        unused -= set(names)
        copied[path] = np.stack(arrays) if "{}" in name else arrays[0]
        assert copied[path].shape == leaf.shape, (path, copied[path].shape, leaf.shape)
    assert not unused, f"not copied: {sorted(unused)}"
    return jax.tree.unflatten(jax.tree.structure(ours), list(copied.values()))


def copied_params(module, table, model, *arguments):
    """Variables of our module, initialised on `arguments`, with the weights of a torch module."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    return {"params": copy_weights(table, model.state_dict(), shapes)}


def random_params(module, *arguments, seed=0):
    """Variables of our module, drawn without compiling its initialisation; norms, biases and positions differ from 0, 1."""
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
