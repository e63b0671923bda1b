"""Measures the peak host memory of exporting a model whose layers are stacked, in files much smaller than the stacks.

    python experiments/export_memory.py

It saves a checkpoint with random parameters, half a gigabyte by default, and exports it in files of 64 MB, in a process
of its own: as checkpoints are saved now, layer by layer, and as they were before, with all layers of a parameter in one
piece. The figure is the memory beyond that before the export, which must stay under 1.25 times the largest file plus
1 GB. experiments/results/export_memory.json has the figures.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import psutil

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.model import ClapConfig, LlmConfig, ModelConfig, PerceiverConfig, VitConfig
from sail_jax.convert.to_torch import model_tensors, write_weights
from sail_jax.models.model import init_params
from sail_jax.runs import checkpoints as checkpoints_lib
from sail_jax.runs.checkpoints import Checkpoints, HostParams
from sail_jax.runs.directory import RunDirectory

RESULT = Path(__file__).parent / "results" / "export_memory.json"
GB = 1e9
FILE_BYTES = 64 << 20


def make_config(layers: int) -> Config:
    """Returns a config whose parameters are almost all in the stacked layers of the LLM."""
    model = ModelConfig(
        llm=LlmConfig(vocab_size=16_000, width=768, layers=layers, heads=12, kv_heads=12, head_dim=64, mlp_width=3072),
        vit=VitConfig(image_size=28, width=32, layers=2, heads=2, mlp_width=48),
        perceiver=PerceiverConfig(latents=2, width=32, layers=1, heads=2, mlp_width=48, max_frames=2),
        audio=ClapConfig(
            width=16, depths=(1,), heads=(2,), projection=16, spec_size=32, mel_bins=16, clip_seconds=1.0, hop=1000
        ),
    )
    return Config(model=model)


def save(folder: Path, config: Config, *, whole: bool) -> None:
    """Saves random parameters as the checkpoint of a run; `whole` as before, each in one piece."""
    folder.mkdir(parents=True)
    config_lib.save(config, folder / "config.json")
    if whole:
        checkpoints_lib._LARGE = 1 << 60
    checkpoints = Checkpoints(RunDirectory(folder))
    checkpoints.save(1, {"model": init_params(config.model, 0)}, {})
    checkpoints.close()


def measure(folder: Path, dtype: str) -> dict[str, float]:
    """Exports the weights of a run in this process."""
    run = RunDirectory(folder)
    config, process = run.load_config(), psutil.Process()
    checkpoints = Checkpoints(run, saves=False)
    params = HostParams(checkpoints, config, merged=True)
    before, began = process.memory_info().rss, time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as output:
        tensors = model_tensors(params.shapes, config.model, params.read)
        write_weights(tensors, Path(output), dtype, shard_bytes=FILE_BYTES)
        seconds = time.monotonic() - began
        files = [path.stat().st_size for path in Path(output).glob("*.safetensors")]
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in status if "VmHWM" in line).split()[1]) * 1024
    stacks = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params.shapes)]
    return {
        "parameters_gb": sum(stacks) / GB,
        "largest_stack_gb": max(stacks) / GB,
        "files": len(files),
        "largest_file_gb": max(files) / GB,
        "resident_before_gb": before / GB,
        "peak_beyond_gb": (peak - before) / GB,
        "limit_gb": 1.25 * max(files) / GB + 1,
        "peak_over_largest_file": (peak - before) / max(files),
        "seconds": seconds,
    }


def main() -> None:
    """Runs the measurements, or, with --save or --measure, one part of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="layers of the LLM, 38 MB each (default %(default)s)")
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        save(options.save, make_config(options.layers), whole=options.whole)
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.dtype)))
        return
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    this = [sys.executable, __file__, "--layers", str(options.layers)]
    figures = {"versions": {"jax": jax.__version__, "python": sys.version.split()[0]}, "cpu_cores": psutil.cpu_count()}
    for saved in ("by layer", "whole"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            run([*this, "--save", str(folder), *["--whole"] * (saved == "whole")])
            for dtype in ("float32", "bfloat16"):
                line = run([*this, "--measure", str(folder), "--dtype", dtype]).stdout.splitlines()[-1]
                figures[f"{saved}, {dtype}"] = json.loads(line)
                print(f"{saved}, {dtype}: {line}")
    figures["load"] = [round(load, 1) for load in os.getloadavg()]
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Written: {RESULT}")


if __name__ == "__main__":
    main()
