"""A made-up sweep whose members have run: two axes, some seeds, and files as `train` and `evaluate` write them."""

import json

from sail_jax.sweeps import Sweep, expand, grid, variants
from sail_jax.sweeps.folder import Record, Status, SweepFolder, SweepRecord

PEAKS, KINDS = (1e-3, 2e-3), {"main": (), "without mICL": ("objective.weights.micl=0.0",)}
BASELINE = "main,peak=0.001"


def recall(member):
    """A figure with an effect of the peak of about 0.1, and a seed's own level."""
    effect = (0.1 + 0.0002 * (member.seed == 1)) * (member.axes["optimizer.peak"] == 2e-3)
    return 0.4 + effect + 0.03 * member.seed + 0.001 * (member.seed % 2)


def metrics(value, corpus=1536):
    """The content of metrics.json, with what may be mistaken for a task."""
    figures = {"i2i/recall@1": value / 4, "i2i/recall@10": value, "i2i/ndcg@10": value / 2, "i2i/auc": None}
    figures |= {"i2i/clustering/nmi": 0.6, "i2i/separability/overlap": 0.5 - value / 4, "i2i/spread/mean_norm": 0.1}
    counts = {"queries": 345, "skipped": 5, "corpus": corpus}
    figures |= {f"i2i/{name}": count for name, count in counts.items()}
    figures |= {f"i2i/T/{name}": count for name, count in {"recall@10": value / 3, **counts}.items()}
    figures |= {f"i2i/d16/{name}": count for name, count in {"recall@10": value / 3, **counts}.items()}
    figures |= {f"q2i/{name}": count for name, count in {"recall@10": value / 2, **counts}.items()}
    bounds = {"i2i/recall@10": 0.01, "i2i/queries": 345, "i2i/skipped": 5, "i2i/corpus": corpus}
    return {"trained": figures, "untrained": {**bounds, "i2i/recall@10": 0.05}, "chance": bounds}


def finish(folder, member, value, **changes):
    """Writes what a member has after its run."""
    run = folder.run(member.name)
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text(json.dumps(metrics(value, **changes)))
    lines = [{"step": 10 * i, "loss": 3 - value, "loss/pairs": 3 / i + 0.01 * member.seed} for i in range(1, 6)]
    lines += [{"step": 50, "eval/i2i/recall@10": value, "eval/i2i/auc": 0.5}]
    run.training_log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.write_status(member.name, Status("done", 1, 100.0, 1900.0, 0, devices=2, device_seconds=3600.0))


def make(path, *, seeds=3, baseline=BASELINE, value=recall, data="0123456789abcdef"):
    """Writes a sweep all of whose members are done; returns its folder and members."""
    axes = [variants(KINDS), grid("optimizer.peak", PEAKS)]
    members = expand(Sweep("glyphs", axes, seeds=range(seeds), name="peaks"))
    records = tuple(Record(member, data, "p") for member in members)
    folder = SweepFolder(path)
    columns = tuple(column for axis in axes for column in axis.columns)
    folder.write(SweepRecord("peaks", "glyphs", baseline, "i2i/recall@10", columns, records))
    for member in members:
        finish(folder, member, value(member))
    return folder, members
