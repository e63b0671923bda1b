"""Writes the model card of an exported model, with its prompts."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sail_jax.config import Config
from sail_jax.config.storage import HUB
from sail_jax.convert.sources import is_hub_id
from sail_jax.data.instructions import instructions_of, pair_of
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory

SIDES = ("query", "document")  # as sentence-transformers names them

_CARD = """---
{front_matter}---

# {name}

An omni-modal embedding model: one vector of {width} numbers for any subset of pictures or video frames, text and sound.
Trained with [sail_jax](https://arxiv.org/abs/2510.12709) {version}, an implementation of SAIL-Embedding
(arXiv 2510.12709).

`{path}` below is the path of this folder. sail_jax is not needed to use it, but this is:

```bash
pip install 'torch>=2.4' 'sentence-transformers>=6' 'transformers>=5.23' soundfile soxr pillow
```

## With sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({path!r}, trust_remote_code=True)
texts = model.encode(["how to bake bread"], prompt_name="query")
items = model.encode(
    [
        "a bare text",
        "picture.jpg",  # or a PIL image
        {{"array": samples, "sampling_rate": 48_000}},  # or "sound.flac"
        {{"title": "Sourdough", "tags": "bread", "video": [frame_0, frame_1], "audio": "sound.flac"}},
    ],
    prompt_name="document",
)
scores = model.similarity(texts, items)
```

A dict takes the text fields `title`, `asr`, `ocr`, `nickname` and `tags`, or a bare `text`; `image` (one or a list) or
`video` (a list of frames); `audio`, or `audio_embedding` for a precomputed CLAP vector. What an item lacks is left out.
A string that ends in the suffix of a picture, sound or video (`.jpg`) is the path of that file, and an error without
one; `{{"text": "..."}}` is a text that ends so.

## With transformers

```python
import torch
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained({path!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({path!r}, trust_remote_code=True)
with torch.no_grad():
    z = model(**processor(["how to bake bread", "picture.jpg"])).embedding  # [2, {width}], not normalised
z = torch.nn.functional.normalize(z, dim=-1)
```

`trust_remote_code` runs the Python files of this folder, which reuse transformers' own Qwen, vision and CLAP modules
and add the Visual Perceiver, the fusion with bidirectional attention, and the chat template. They open no network
connection.

{adapters}## Sizes

Trained at the Matryoshka sizes {matryoshka}. `model.encode(..., truncate_dim={smallest})` cuts vectors to one of them,
at unit length; normalise a vector that you cut yourself again.

## Prompts

A prompt is the instruction of the system turn. Use the prompt of the task for queries, and that for documents for the
items that are searched.

| prompt_name | instruction |
| --- | --- |
{prompts}

## Training

{steps} steps of {batch} pairs, seed {seed}, peak learning rate {peak}.{lora} Started from: {start}.

| data set | sampling weight | patterns |
| --- | --- | --- |
{datasets}

## Evaluation

{metrics}
"""

_ADAPTERS = """## Adapters

The weights of this folder are those of the base model. Training changed only the LoRA adapters in `adapter/`, and the
figures below are with them:

```python
model.load_adapter("{path}/adapter")  # of a SentenceTransformer
model = peft.PeftModel.from_pretrained(model, "{path}/adapter")  # of transformers
```

"""


def prompts(config: Config) -> dict[str, str]:
    """Name -> instruction: "query" and "document" by role, then those of all tasks and training sets."""
    tasks = config.eval.tasks | config.data.datasets  # a training set overrides a task of the same name
    pairs = {name: pair_of(config, task) for name, task in tasks.items()}
    named = {f"{name}-{side}": text for name, pair in pairs.items() for side, text in zip(SIDES, pair, strict=True)}
    return dict(zip(SIDES, instructions_of(config), strict=True)) | named


def model_card(
    config: Config, run: RunDirectory, steps: int, output: Path, license_name: str, *, adapters: bool = False
) -> str:
    """The model card: usage, training data, settings and figures.

    Args:
        config: the experiment.
        run: the run; its `metrics.json` is read if it exists.
        steps: steps done.
        output: the exported directory.
        license_name: the `license` of the front matter.
        adapters: whether LoRA adapters are in a folder beside the model, not merged into it.

    Raises:
        SailError: `metrics.json` is malformed.
    """
    hub = {part: source.removeprefix(HUB) for part, source in config.init_from.items() if is_hub_id(source)}
    # The card may show the name of a local folder, but never its path, which is private.
    start = {part: hub.get(part, Path(source).name) for part, source in config.init_from.items()}
    front = ModelCardData(
        license=license_name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "multimodal", "sail_jax"],
        base_model=sorted(set(hub.values())) or None,
    )
    path = f"./{output.name}"  # a bare name would be looked for on the hub where there is no such folder
    beside = _ADAPTERS.format(path=path) if adapters else ""
    rows = [f"| {_cell(name)} | {d.weight:g} | {', '.join(d.patterns)} |" for name, d in config.data.datasets.items()]
    lora = config.lora
    sizes = sorted(config.objective.matryoshka, reverse=True)
    return _CARD.format(
        front_matter=front.to_yaml() + "\n",
        name=output.name,
        path=path,
        version=importlib.metadata.version("sail_jax"),
        width=config.model.llm.width,
        matryoshka=", ".join(map(str, sizes)),
        smallest=sizes[-1],
        prompts="\n".join(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in prompts(config).items()),
        steps=f"{steps:,}",
        batch=config.data.batch_size,
        seed=config.seed,
        peak=f"{config.optimizer.peak:g}",
        adapters=beside,
        lora=f" LoRA of rank {lora.rank} on {', '.join(lora.targets)}." if lora.rank else "",
        start="; ".join(f"{part}: {source}" for part, source in start.items()) or "random weights",
        datasets="\n".join(rows),
        metrics=_metrics(run),
    )


def _metrics(run: RunDirectory) -> str:
    if not run.metrics.is_file():
        return "Not evaluated. `python -m sail_jax evaluate` before exporting puts the figures here."
    try:
        figures: dict[str, Any] = json.loads(run.metrics.read_text(encoding="utf-8"))["trained"]
        lines = [f"| {_cell(name)} | {value:.4f} |" for name, value in figures.items() if "recall@" in name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SailError(f"{run.metrics} is broken ({error!r}). Run `evaluate` again, or remove it.") from error
    return "\n".join(["| metric | value |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
