"""Saves and restores the checkpoints of a run, on any mesh."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.models.lora import init_lora, merge
from sail_jax.models.model import abstract_params, init_params
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.parameters import abstract_on_mesh, join, path_name, shardings_of, split

# Copies of an array on several devices each write a slice of it, which needs a program per shape; smaller arrays are
# written whole by one device.
_LEAST_SLICE_BYTES = 2**20
# Bytes from which it matters how soon the memory of an array is free again.
_LARGE = 32 << 20


def _write_small_arrays_whole() -> None:
    """Tells Orbax which arrays to slice, without its warning that this replaces its default."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE_BYTES)
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    absl.logging.set_verbosity(level)


_write_small_arrays_whole()


class Checkpoints:
    """Saves the checkpoints of a run asynchronously, and restores them.

    Args:
        run: the run directory.
        keep: number of latest checkpoints to keep.
        always: steps whose checkpoints are kept as well.
    """

    def __init__(self, run: RunDirectory, *, keep: int = 1, always: Sequence[int] = ()) -> None:
        policy = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(list(always))]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        handlers["pipeline"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(run.checkpoints, options=options, item_handlers=handlers)
        self._run = run

    def latest(self) -> int | None:
        """Returns the step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any], pipeline: dict[str, Any]) -> None:
        """Starts to save a checkpoint, and returns before it is written; skips a step saved last.

        Args:
            step: number of steps done.
            items: "model", the model's parameters; "lora", its adapters, if it has any; "ema", the running average of
                the trained ones of both, if it has one; "training", the rest of the training state.
            pipeline: the state of the input pipeline, as JSON values.
        """
        if step == self._manager.latest_step():
            return
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**arguments, pipeline=ocp.args.JsonSave(pipeline)), force=True)

    def restore(self, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores the latest checkpoint, and returns (items, pipeline).

        Args:
            items: the items to restore, as abstract arrays with their shardings; the mesh may differ from that of the
                save. "lora" must be among them if it was saved: without its adapters the model is a different one.

        Raises:
            SailError: there is no checkpoint, or its arrays have other names or shapes.
        """
        step = self._checked_step(items)
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments, pipeline=ocp.args.JsonRestore()))
        return {name: restored[name] for name in items}, restored["pipeline"]

    def reader(self, items: dict[str, Any]) -> Callable[[str, str], np.ndarray]:
        """Returns a function that reads one array of the latest checkpoint into the host's memory.

        The function takes the name of an item and the path of the array within it, such as "llm/embedding".

        Args:
            items: the items that will be read, as abstract arrays; "lora" as in `restore`.

        Raises:
            SailError: as `restore`.
        """
        folder = self._run.checkpoints / str(self._checked_step(items))
        arrays = {
            (item, path_name(path)): (path, leaf)
            for item, tree in items.items()
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

        def read(item: str, name: str) -> np.ndarray:
            path, leaf = arrays[item, name]
            tree, on_host = leaf, ocp.RestoreArgs(restore_type=np.ndarray)
            for key in reversed(path):
                tree, on_host = {key.key: tree}, {key.key: on_host}
            wanted = ocp.args.PyTreeRestore(item=tree, restore_args=on_host, partial_restore=True)
            if leaf.size * leaf.dtype.itemsize >= _LARGE:
                gc.collect()  # finished reads of orbax hold their arrays in circles, for some time
            (array,) = jax.tree.leaves(handler.restore(folder / item, args=wanted))
            return array

        return read

    def _checked_step(self, items: dict[str, Any]) -> int:
        """Returns the latest step; raises SailError if there is none, or its arrays have other names or shapes."""
        step = self.latest()
        if step is None:
            raise SailError(f"{self._run.path} has no checkpoint: train there first, or name another --workdir.")
        saved = self._manager.item_metadata(step)
        for name in {*items, "lora"}:
            self._check_shapes(step, saved.get(name), items.get(name))
        return step

    def _check_shapes(self, step: int, saved: Any, abstract: Any) -> None:
        have, want = _shapes(saved), _shapes(abstract)
        wrong = [name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
        if wrong:
            shown = "; ".join(f"{n}: saved {have.get(n, 'absent')}, config {want.get(n, 'absent')}" for n in wrong[:5])
            raise SailError(
                f"The checkpoint {self._run.checkpoints / str(step)} was saved with another config: {len(wrong)} "
                f"arrays differ ({shown}{', ...' if len(wrong) > 5 else ''}). Use the config of that run "
                f"({self._run.config}) or another --workdir."
            )

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the files."""
        self._manager.wait_until_finished()
        self._manager.close()


_ITEMS = ("model", "lora", "ema", "training")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of every array; named tuples, lists and mappings give the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def restore_params(checkpoints: Checkpoints, config: Config, mesh: Mesh) -> Any:
    """Restores the parameters of the model from the latest checkpoint, with LoRA adapters merged in.

    Of a run with a running average it is that, unless `config.eval.ema` is off.

    Raises:
        SailError: there is no checkpoint, or it was saved with another config.
    """
    items = abstract_on_mesh(_items(config, abstract_params(config, mesh)), mesh)
    restored, _ = checkpoints.restore(items)
    params = join(restored, restored.pop("ema", {}))
    if not config.lora.rank:
        return params["model"]
    out = shardings_of(items["model"])
    merged = jax.jit(merge, static_argnames="config", out_shardings=out, donate_argnames="params")
    return merged(params["model"], params["lora"], config.lora)


_merge = jax.jit(merge, static_argnames="config")


class HostParams:
    """Reads the parameters of the latest checkpoint into the host's memory, one at a time.

    Args:
        checkpoints: the checkpoints of a run.
        config: the experiment.
        merged: whether adapters are merged into the parameters that have them.

    Attributes:
        shapes: the parameters of the model, as abstract arrays.
        lora: the tree of adapters, numpy arrays; None without LoRA.

    They are the running average where `restore_params` says so.

    Raises:
        SailError: as `restore_params`.
    """

    def __init__(self, checkpoints: Checkpoints, config: Config, *, merged: bool) -> None:
        self.shapes = jax.eval_shape(lambda: init_params(config.model, config.seed))
        self._config, items = config.lora, _items(config, self.shapes)
        self._reader = checkpoints.reader(items)
        self._averaged = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(items.get("ema", {}))}
        self.lora, self._adapters = None, {}
        if config.lora.rank:
            self.lora = jax.tree_util.tree_map_with_path(
                lambda path, _: self._read("lora", path_name(path)), items["lora"]
            )
            self._adapters = flatten_dict(self.lora, sep="/") if merged else {}

    def __call__(self, name: str) -> np.ndarray:
        """Returns the parameter at a path, such as "llm/embedding"."""
        leaf = self._read("model", name)
        if f"{name}_a" not in self._adapters:
            return leaf
        adapter = {f"{name}_{factor}": self._adapters[f"{name}_{factor}"] for factor in "ab"}
        one, lora = (unflatten_dict(flat, sep="/") for flat in ({name: leaf}, adapter))
        (merged,) = jax.tree.leaves(_merge(one, lora, self._config))
        return np.asarray(merged)

    def _read(self, item: str, name: str) -> np.ndarray:
        """Reads an array of an item, or its running average."""
        path = f"{item}/{name}"
        return self._reader("ema", path) if path in self._averaged else self._reader(item, name)


def _items(config: Config, model: Any) -> dict[str, Any]:
    """Returns the items of a checkpoint that make up the model, as abstract arrays.

    Args:
        config: the experiment.
        model: the parameters of the model, as abstract arrays.
    """
    items = {"model": model}
    if config.lora.rank:
        items["lora"] = jax.eval_shape(lambda: init_lora(model, config.lora, config.seed))
    if config.optimizer.ema and config.eval.ema:
        items["ema"] = split(config, items)[0]
    return items
