"""Made-up runs for the tests of the report."""

import io

import numpy as np
from PIL import Image

from sail_jax.data.thumbnail import thumbnail
from sail_jax.evaluation.report.data import RunReport, SpaceMap, StoredResult, TaskFailures, WorstQuery
from sail_jax.evaluation.report.gallery import Card, GalleryRow
from sail_jax.patterns import MODALITY_SETS, parse_pattern

WIDTHS = (96, 48, 24, 8)


def picture(kind="JPEG", size=(640, 480), mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 40, size[0] // 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def metrics(low, **more):
    recalls = {f"recall@{k}": min(1.0, low * factor) for k, factor in ((1, 0.1), (10, 1.0), (50, 1.9))}
    return recalls | {name.replace("_at_", "@").replace("__", "/"): value for name, value in more.items()}


def histograms(apart, seed=0):
    rng = np.random.default_rng(seed)
    edges = np.linspace(-1, 1, 81)
    positive, _ = np.histogram(rng.normal(0.2 + apart, 0.12, 4000), edges)
    negative, _ = np.histogram(rng.normal(0.2, 0.12, 4000), edges)
    return {"edges": edges.tolist(), "positive": positive.tolist(), "negative": negative.tolist()}


def all_figures(good=0.45):
    """Returns a run of two tasks; i2i has every kind of figures."""
    full = {"ndcg_at_10": 0.31, "nmi": 0.612, "separability__overlap": 0.2, "separability__dprime": 2.5, "auc": 0.811}
    poor = {"ndcg_at_10": 0.02, "nmi": 0.212, "separability__overlap": 0.9, "separability__dprime": 0.1, "auc": 0.502}

    def row(model, task, view, main, width, values, histogram=None):
        view = parse_pattern(view, setting="view")
        return StoredResult(model, task, view, main, width, values, 1234, 7 if task == "q2i" else 0, 5678, histogram)

    rows = [
        row("trained", "i2i", "VTA->VTA", True, 96, metrics(good, **full), histograms(good)),
        row("untrained", "i2i", "VTA->VTA", True, 96, metrics(0.03, **poor), histograms(0.02)),
        row("trained", "q2i", "T->VTA", True, 96, metrics(good / 2), histograms(good / 2)),
        row("tfidf", "q2i", "T->T", True, 0, metrics(0.0987)),
    ]
    for place, width in enumerate(WIDTHS[1:], 1):
        rows.append(row("trained", "i2i", "VTA->VTA", True, width, metrics(good * (1 - 0.08 * place**2))))
        rows.append(row("untrained", "i2i", "VTA->VTA", True, width, metrics(0.03 / place)))
    for query in MODALITY_SETS:
        for target in MODALITY_SETS:
            value = good * len(query) * len(target) / 9
            rows.append(row("trained", "i2i", f"{query}->{target}", False, 96, metrics(value)))
    rows.append(row("untrained", "i2i", "V->V", False, 96, metrics(0.011)))
    return rows


def log(seed=0, steps=40):
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(steps):
        step = 10 * (i + 1)
        loss = 4 * np.exp(-i / 15) + 1
        line = {"step": step, "loss": loss, "learning_rate": 1e-3 * min(1, i / 5) * (1 - i / steps)}
        line |= {"loss/copair": loss + 0.2 * rng.normal(), "loss/search": 1.4 * loss + 0.2 * rng.normal()}
        line |= {
            "temperature": 0.05 * 0.99**i,
            "gradient_norm": 5 + rng.normal(),
            "share/data": 0.1 * rng.random(),
        }
        if i % 8 == 7:
            line |= {"eval/i2i/recall@10": 0.01 * i, "eval/q2i/recall@10": 0.006 * i, "eval/i2i/recall@1": 0.001 * i}
        lines.append(line)
    return lines


def gallery():
    def small(*arguments, **options):
        return thumbnail(picture(*arguments, **options))

    results = [
        Card("a", "first found, a title of usual length", small(), True, relevant=True, score=0.912),
        Card("b", "second found", small("PNG", mode="P", seed=1), False, relevant=False, score=0.5),
        Card("c", "", None, True, relevant=True, score=-0.25),
        Card("d", "broken", thumbnail(b"not a picture"), False, relevant=False, score=0.1),
    ]
    return [
        GalleryRow("i2i", Card("q", "what is asked", small(seed=2)), results),
        GalleryRow("q2i", Card("", "free text"), results[:1]),
    ]


def space_map(task="i2i", count=300, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 12, count)
    points = rng.normal(size=(12, 2))[kinds] * 20 + rng.normal(size=(count, 2)) * 3
    labels = [f"topic {kind}" if kind < 11 else "" for kind in kinds]
    near = np.argsort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, 1:9] if count < 1000 else None
    return SpaceMap(
        task,
        np.round(points, 2).tolist(),
        labels,
        ids=[f"item{number}" for number in range(count)],
        captions=[f"the words of item {number}" for number in range(count)],
        modalities=["VT" if number % 2 else "T" for number in range(count)],
        all_labels=[[label, "odd"] if label and number % 2 else [] for number, label in enumerate(labels)],
        sheets=[thumbnail(picture(seed=sheet)) for sheet in range(-(-count // 256))],
        sounds={"1": "data:audio/mpeg;base64,AAAA"},
        neighbours=[[1, 2]] * count if near is None else near.tolist(),
    )


def failures(task="i2i"):
    missed, wanted = gallery()[0], Card("w", "the right one", thumbnail(picture(seed=3)))
    worst = [WorstQuery(missed, wanted, ["The query lacks sound."])] * 3
    return TaskFailures(task, 1227, 300, 8, worst, 0.4)


def run(name="quick & small", good=0.45, seed=0, **changes):
    values = {
        "figures": all_figures(good),
        "log": log(seed),
        "step": 400,
        "facts": {"Steps": "400 of 400, 64 pairs each", "Parameters": "1,234,567"},
        "gallery": gallery(),
        "maps": [space_map(seed=seed)],
        "failures": [failures()],
        "settings": {"model": {"llm": {"width": 1536 + seed}}, "names": (1, 2), "empty": {}},
    }
    return RunReport(name, **(values | changes))
