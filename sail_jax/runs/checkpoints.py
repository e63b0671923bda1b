"""Saves and restores the checkpoints of a run, on any mesh."""

import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sail_jax.buckets import address, drop, fetch, remove, with_addresses
from sail_jax.config import Config
from sail_jax.errors import DiskError, SailError
from sail_jax.models.lora import init_lora, merge
from sail_jax.models.model import abstract_params, init_params
from sail_jax.runs import digests
from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.uploads import CheckpointUploads, remove_unfinished
from sail_jax.sharding.parameters import abstract_on_mesh, join, path_name, shardings_of, split
from sail_jax.sharding.process_group import everyone

# Copies of an array on several devices each write a slice of it, which needs a program per shape; smaller arrays are
# written whole by one device.
_LEAST_SLICE_BYTES = 2**20
# Bytes from which an array is stored in parts, at most as large, that can be read one by one.
_LARGE = 32 << 20
# Each thread that reads holds a part of an array.
_READ_THREADS = 4


def _write_small_arrays_whole() -> None:
    """Tells Orbax which arrays to slice, without its warning that this replaces its default."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE_BYTES)
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    absl.logging.set_verbosity(level)


_write_small_arrays_whole()
# What Orbax logs as an error, with a traceback, it raises too.
absl.logging.get_absl_logger().addFilter(
    lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
)


class Checkpoints:
    """Saves the checkpoints of a run asynchronously, and restores them.

    The newest checkpoint that is whole counts as the latest: its files have the digests with which they were saved
    (`runs.digests`). Each damaged one is named once.

    Args:
        run: the run directory.
        keep: number of latest checkpoints to keep.
        always: steps whose checkpoints are kept as well.
        saves: whether checkpoints will be saved; damaged ones then get out of the way, into STEP.damaged, and what a
            killed save left is removed, with those not to be kept. Otherwise the folder stays as it is, and the
            training state is not checked.
        step: the only checkpoint to restore, instead of the latest.

    Raises:
        SailError: there is no checkpoint of `step`, or there are checkpoints, but none is whole.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        keep: int = 1,
        always: Sequence[int] = (),
        saves: bool = True,
        step: int | None = None,
    ) -> None:
        self._run, self._saves, self._wanted = run, saves, step
        self._damaged: dict[int, str] = {}
        if saves:
            remove_unfinished(run)
        self._uploads = CheckpointUploads(run, keep, always)
        self._step = self._newest_whole()
        if saves:
            everyone().on_first(lambda: self._remove_superseded(keep, always))
        policy = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(list(always))]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=saves, cleanup_tmp_directories=saves)
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        handlers |= {"pipeline": ocp.JsonCheckpointHandler(), digests.ITEM: digests.DigestHandler()}
        self._manager = ocp.CheckpointManager(run.checkpoints, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Returns the step of the checkpoint that is restored, or the one saved last; None if there is none."""
        return self._step

    def _newest_whole(self) -> int | None:
        """Returns the step of the newest checkpoint that is whole, or of the wanted one; None if there is none."""
        everyone().wait()  # until then a process may still be at work on an earlier save
        steps = self._run.steps()
        if self._wanted is not None and self._wanted not in steps:
            kept = f"kept are {', '.join(map(str, reversed(steps)))}" if steps else "there are none yet"
            raise SailError(f"{self._run.checkpoints} has no checkpoint of step {self._wanted}; {kept}.")
        for step in steps if self._wanted is None else [self._wanted]:
            if not (problem := self._problem(step)):
                self._set_aside(step)
                return step
            self._damaged[step] = problem
        if self._damaged:
            raise self._none_whole(steps)
        return None

    def _problem(self, step: int) -> str:
        """Returns what is wrong with the files of a checkpoint; empty if nothing is, or if it has no digests."""
        folder, processes = self._run.checkpoints / str(step), everyone()
        left_out = () if self._saves else ("training",)

        def problem() -> str:
            fetch(folder, leave_out=lambda name: name.partition("/")[0] in left_out)
            share = {"share": processes.index, "shares": processes.count}
            found = processes.gather(digests.damage(epath.Path(folder), leave_out=left_out, **share))
            return next(filter(None, found), "")

        found = problem()
        if found and address(folder):  # it may be only the mirror that is damaged
            processes.on_first(lambda: drop(folder))
            found = problem()
        return found

    def _set_aside(self, whole: int) -> None:
        """Says which checkpoints are damaged, and moves them out of the way if others will be saved."""
        if everyone().first:
            for step, problem in self._damaged.items():
                folder = self._run.checkpoints / str(step)
                _say(f"{folder} is damaged: {problem}. The checkpoint of step {whole} is taken instead.")
                if self._saves:
                    aside = folder.with_name(f"{step}.damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
            folder = self._run.checkpoints / str(whole)
            if not digests.has_digests(epath.Path(folder)):
                _say(f"{folder} was saved by an older version, without digests: it is loaded unchecked.")
        everyone().wait()

    def _remove_superseded(self, keep: int, always: Sequence[int]) -> None:
        """Removes what a process that was killed right after its last save had yet to remove, or had begun to."""
        steps = self._run.steps()
        for step in set(steps) - {*steps[:keep], *always}:
            remove(self._run.checkpoints / str(step))

    def _none_whole(self, steps: list[int]) -> SailError:
        problems = "; ".join(f"{step}: {problem}" for step, problem in self._damaged.items())
        others = [step for step in steps if step not in self._damaged]
        remedy = f"Choose another step ({', '.join(map(str, others))})" if others else "Put a good copy of one back"
        return SailError(
            f"{self._run.checkpoints} has no checkpoint that is whole ({problems}). {remedy}, or train in another "
            "--workdir."
        )

    def save(self, step: int, items: dict[str, Any], pipeline: dict[str, Any]) -> None:
        """Starts to save a checkpoint, and returns before it is written; skips a step saved last.

        Args:
            step: number of steps done.
            items: "model", the model's parameters; "lora", its adapters, if it has any; "ema", the running average of
                the trained ones of both, if it has one; "training", the rest of the training state.
            pipeline: the state of the input pipeline, as JSON values.

        Raises:
            DiskError: there is no room for it.
        """
        if step == self._step:
            return
        self._finish()  # before orbax removes what is being uploaded
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(items))
        everyone().on_first(lambda: self._require_room(step, size))
        arguments = {name: ocp.args.StandardSave(tree, save_args=_in_parts(tree)) for name, tree in items.items()}
        arguments |= {"pipeline": ocp.args.JsonSave(pipeline), digests.ITEM: digests.Digests()}
        self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        self._uploads.begin(step)
        self._step = step

    def _require_room(self, step: int, size: int) -> None:
        """Raises DiskError before anything is written, where the disk tells that it is too full."""
        free = shutil.disk_usage(self._run.checkpoints).free
        if free < size:
            kept = "There is none before" if self._step is None else f"That of step {self._step} is whole"
            raise DiskError(
                f"{self._run.checkpoints} has {free / 1e9:.3g} GB left, and the checkpoint of step {step} takes "
                f"{size / 1e9:.3g}. {kept}: make room, and run the same command again."
            )

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
        with self._unreadable():
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**arguments, pipeline=ocp.args.JsonRestore())
            )
        return {name: restored[name] for name in items}, restored["pipeline"]

    @contextlib.contextmanager
    def _unreadable(self) -> Iterator[None]:
        """Explains any error of orbax for a checkpoint without digests, which may be damaged."""
        folder = self._run.checkpoints / str(self._step)
        try:
            yield
        except Exception as error:
            if isinstance(error, SailError | jax.errors.JaxRuntimeError) or digests.has_digests(epath.Path(folder)):
                raise
            raise SailError(
                f"{folder} cannot be read ({str(error).partition(chr(10))[0][:200]}). It has no digests; if it is "
                "damaged, remove it, and the one before is taken."
            ) from error

    def reader(self, items: dict[str, Any]) -> Callable[[str, str, int | None], tuple[int, np.ndarray]]:
        """Returns what reads an array of the latest checkpoint, or some of its layers, into host memory.

        The function takes the name of an item, the path of the array within it, such as "llm/embedding", and a layer,
        an index on the first axis. It returns the layers that are stored together with that one, and the index of the
        first of them; without a layer, 0 and the whole array.

        Args:
            items: the items that will be read, as abstract arrays; "lora" as in `restore`.

        Raises:
            SailError: as `restore`.
        """
        folder = self._run.checkpoints / str(self._checked_step(items))
        context = tensorstore.Context({"data_copy_concurrency": {"limit": _READ_THREADS}})

        def read(item: str, name: str, layer: int | None = None) -> tuple[int, np.ndarray]:
            where = {"driver": "ocdbt", "base": f"file://{folder / item}/", "path": name.replace("/", ".") + "/"}
            spec = {"driver": "zarr", "kvstore": where, "fill_missing_data_reads": False}
            with self._unreadable():
                array = tensorstore.open(spec, read=True, open=True, context=context).result()
                if layer is None:
                    return 0, array.read().result()
                together = array.chunk_layout.read_chunk.shape[0]
                first = layer // together * together
                return first, array[first : min(first + together, array.shape[0])].read().result()

        return read

    def _checked_step(self, items: dict[str, Any]) -> int:
        """Returns the latest step; raises SailError if there is none, or its arrays have other names or shapes."""
        if self._step is None:
            raise SailError(f"{self._run.path} has no checkpoint: train there first, or name another --workdir.")
        with self._unreadable():
            saved = self._manager.item_metadata(self._step)
        for name in {*items, "lora"}:
            self._check_shapes(self._step, saved.get(name), items.get(name))
        return self._step

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
        """Waits until all checkpoints are written and uploaded, and closes the files."""
        self._finish()
        self._manager.close()

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._uploads.finish()


@functools.cache  # a verb may open the checkpoints twice
def _say(message: str) -> None:
    print(with_addresses(message), file=sys.stderr, flush=True)


_ITEMS = ("model", "lora", "ema", "training")


def _in_parts(tree: Any) -> Any:
    """Returns how the arrays of an item are cut in files: large ones in parts, and stacked layers one by one."""

    def parts(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        if leaf.size * leaf.dtype.itemsize < _LARGE:
            return ocp.SaveArgs()
        stacked = "layers" in path_name(path).split("/")
        return ocp.SaveArgs(chunk_byte_size=_LARGE, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(parts, tree)


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
    """Reads the parameters of the latest checkpoint into the host's memory, one layer of one at a time.

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
                lambda path, _: self._read("lora", path_name(path), None)[1], items["lora"]
            )
            self._adapters = flatten_dict(self.lora, sep="/") if merged else {}

    def __call__(self, name: str) -> np.ndarray:
        """Returns the parameter at a path, such as "llm/embedding"."""
        return self.read(name, None)[1]

    def read(self, name: str, layer: int | None) -> tuple[int, np.ndarray]:
        """Returns the layers of a parameter that are stored with one of them, and the index of the first.

        Args:
            name: its path.
            layer: an index on its first axis; None for 0 and the whole parameter.
        """
        first, leaf = self._read("model", name, layer)
        if f"{name}_a" not in self._adapters:
            return first, leaf
        adapter = {f"{name}_{factor}": self._adapters[f"{name}_{factor}"] for factor in "ab"}
        if layer is not None:
            adapter = {factor: array[first : first + len(leaf)] for factor, array in adapter.items()}
        one, lora = (unflatten_dict(flat, sep="/") for flat in ({name: leaf}, adapter))
        (merged,) = jax.tree.leaves(_merge(one, lora, self._config))
        return first, np.asarray(merged)

    def _read(self, item: str, name: str, layer: int | None) -> tuple[int, np.ndarray]:
        """Reads an array of an item, or its running average."""
        path = f"{item}/{name}"
        return self._reader("ema", path, layer) if path in self._averaged else self._reader(item, name, layer)


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
