"""Measures the peak host memory of importing a checkpoint of 1.5 B parameters.

    python experiments/import_memory.py

It creates a checkpoint with the shapes of Qwen2.5-1.5B, imports it from one file and from several, each in its own
process, and writes experiments/results/import_memory.json. On a CPU the parameters are in host memory too; the figure
is the memory beyond them, which must stay under 1.25 times the largest file plus 1 GB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import psutil
from safetensors.numpy import save_file

from sail_jax.config.model import LlmConfig
from sail_jax.config.training import MeshConfig
from sail_jax.convert.from_hf import load_tower, plan_rows
from sail_jax.convert.hf_configs import llm_config
from sail_jax.convert.weight_map import qwen
from sail_jax.models.llm import Llm
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import abstract_on_mesh, path_name

CONFIG = LlmConfig()
RESULT = Path(__file__).parent / "results" / "import_memory.json"
GB = 1e9


def abstract_llm() -> dict:
    """The LLM's parameters on a mesh of one device, not computed."""
    inputs = jnp.zeros((1, 4, CONFIG.width)), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    shapes = jax.eval_shape(Llm(CONFIG).init, jax.random.key(0), *inputs)["params"]
    return abstract_on_mesh({"llm": shapes}, make_mesh(MeshConfig()))["llm"]


def make_checkpoint(directory: Path, files: int) -> None:
    """Writes random bfloat16 tensors named as in Qwen2ForCausalLM, in `files` files of similar size."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_llm())[0]}
    plan = plan_rows(qwen(CONFIG), "model.", leaves)
    shapes = {name: entry.expected() for entry in plan.values() for name in entry.names}
    budget = sum(int(np.prod(shape)) for shape in shapes.values()) / files
    shards: list[list[str]] = [[]]
    used = 0.0
    for name, shape in shapes.items():
        if used >= budget and len(shards) < files:
            shards.append([])
            used = 0.0
        shards[-1].append(name)
        used += float(np.prod(shape))
    directory.mkdir()
    rng = np.random.default_rng(0)
    index = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
        draw = {name: rng.random(shapes[name], np.float32).astype(ml_dtypes.bfloat16) for name in names}
        save_file(draw, directory / file)
        index |= dict.fromkeys(names, file)
    if files > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "config.json").write_text(json.dumps(llm_config(CONFIG)))


def measure(directory: Path) -> dict[str, float]:
    """Imports a checkpoint in this process."""
    abstract = abstract_llm()
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.monotonic()
    loaded = load_tower(directory, "llm", CONFIG, abstract)
    jax.block_until_ready(loaded.params)
    seconds = time.monotonic() - began
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    largest = max(path.stat().st_size for path in directory.glob("*.safetensors"))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "parameters_gb": parameters / GB,
        "largest_file_gb": largest / GB,
        "resident_before_gb": before / GB,
        "peak_resident_gb": peak * 1024 / GB,
        "peak_beyond_parameters_gb": (peak * 1024 - parameters) / GB,
        "limit_gb": 1.25 * largest / GB + 1,
        "seconds": seconds,
    }


def main() -> None:
    """Runs the measurement, or, with --measure, one import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="checkpoint to import in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    figures = {"versions": {"jax": jax.__version__, "python": sys.version.split()[0]}, "cpu_cores": psutil.cpu_count()}
    for files in (1, 4):
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / "checkpoint"
            make_checkpoint(directory, files)
            command = [sys.executable, __file__, "--measure", str(directory)]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        figures[f"{files} files"] = json.loads(line)
        print(f"{files} files: {line}")
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Written: {RESULT}")


if __name__ == "__main__":
    main()
