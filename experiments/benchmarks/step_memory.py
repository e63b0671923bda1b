"""Memory and operations of a full-size train step, compiled ahead of time for TPU v5p.

    python -m experiments.benchmarks.step_memory

The model of configs/sail_1b5.py with items of 8 frames at 448 px, one clip of sound and up to 320 tokens, bfloat16, one
pattern, on four chips that each have a copy of everything, and again with the moments sharded over them. Memory is the
compiler's account, for a batch whose media go through the towers in chunks; operations are counted on the jaxpr.
Nothing is run; only libtpu (the `tpu` extra) is needed.
"""

import argparse

from experiments.benchmarks import common
from sail_jax import config as config_lib
from sail_jax.aot.compile import compile_ahead, count_ahead
from sail_jax.config import Config

GIB = 2**30
TOPOLOGY, CHIPS = "v5p:2x2x1", 4
SMALL, LARGE = 45, 135  # pairs of a chip in two batches; their difference gives the memory of an item
MODES = {
    "selective": ("model.remat=dots",),
    "full": ("model.remat=full",),
    "GradCache and full": ("model.remat=full", "train.micro_batches=4"),
    "media in chunks and full": ("model.remat=full", "model.media_chunk=1"),
}


# Name -> pairs on a chip, and settings.
CASES = {
    "small": (SMALL,),
    "large": (LARGE,),
    "first moment": (LARGE, "optimizer.first_moment=bfloat16"),
    "ZeRO-2": (LARGE, "mesh.shard_optimizer=True"),
}


def experiment(pairs: int, *overrides: str) -> Config:
    """The full-size experiment with one data set and one pattern, and so many pairs on a chip."""
    words = ["data.frame_budget=8", "data.clip_budget=1", "data.text_budget=0", "model.media_chunk=0", "mesh.fsdp=1"]
    words += [f"data.batch_size={pairs * CHIPS}", *overrides]
    values = config_lib.to_dict(config_lib.load("configs/sail_1b5.py", words))
    values["data"]["datasets"] = {"copair": values["data"]["datasets"]["copair"] | {"patterns": ("O->O",)}}
    values["stages"] = {}
    return config_lib.build(values)


def ratios(attention: str) -> dict[str, float]:
    """Mode -> executed operations over those of the model."""
    found = {}
    for name, overrides in MODES.items():
        executed, model = count_ahead(experiment(4, f"model.perceiver.attention={attention}", *overrides), TOPOLOGY)
        found[name] = executed / model
        print(attention, name, round(found[name], 3), flush=True)
    return found


def memory(pairs: int, *overrides: str) -> dict[str, float]:
    """The memory of a chip in bytes by the compiler's account, and the seconds of compilation."""
    report = compile_ahead(experiment(pairs, "model.remat=full", "model.media_chunk=3", *overrides), TOPOLOGY)
    kinds = vars(report.memory) | {"total": report.memory.total}
    return {"pairs": pairs, "seconds": report.seconds, "refusal": report.refusal, **kinds}


def rows(steps: dict[str, dict[str, float]], by_mode: dict[str, dict[str, float]]) -> list[dict]:
    """The lines of the table in docs/benchmarks.md."""
    small, large = steps["small"], steps["large"]
    per_item = (large["total"] - small["total"]) / (2 * (large["pairs"] - small["pairs"])) / GIB
    what = f"Full-size step, {2 * large['pairs']} items of 8 frames on a chip (compiled for {CHIPS} v5p): memory, "
    lines = {
        f"{what}with a copy of everything on each": f"{large['total'] / GIB:.1f} GiB, {per_item:.3f} GiB per item",
        f"{what}the same, first moments in bfloat16": f"{steps['first moment']['total'] / GIB:.1f} GiB",
        f"{what}moments split over them (ZeRO-2)": f"{steps['ZeRO-2']['total'] / GIB:.1f} GiB",
    }
    for attention, found in by_mode.items():
        for name, ratio in found.items():
            lines[f"Executed over model operations, full-size step, perceiver '{attention}': {name}"] = f"{ratio:.2f}"
    return [{"what": what, "ours": ours, "peer": "", "ratio": None} for what, ours in lines.items()]


def main() -> None:
    """Parses the command line, compiles, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", action="store_true", help="only count operations and print them: minutes less")
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), help="compile these cases; the others stay as they were measured"
    )
    options = parser.parse_args()
    by_mode = {attention: ratios(attention) for attention in ("latents", "joint")}
    if options.operations:
        return
    steps = common.read("step_memory") if options.only else {}
    steps = {name: steps[name] for name in CASES if name in steps}
    steps |= {name: memory(*CASES[name]) for name in options.only or CASES}
    figures = {"machine": common.machine(), "versions": common.versions("jaxlib", "libtpu", "flax")}
    figures |= steps | {"operations": by_mode, "rows": rows(steps, by_mode)}
    common.write("step_memory", figures)


if __name__ == "__main__":
    main()
