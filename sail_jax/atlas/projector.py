"""Writes a sample of an atlas for TensorBoard's embedding projector.

    tensors.tsv            a vector a line
    metadata.tsv           id, label, labels, modalities and text of each, under a line of names
    sprite.png             their pictures, row by row, on a square
    projector_config.pbtxt names the others

tensorboardX has a writer of such files too. It is not used: for as many pictures it takes gigabytes, and it adds to
what an earlier call left.
"""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sail_jax.atlas.points import NOTHING, Block
from sail_jax.errors import SailError
from sail_jax.files import partial_folder

MOST = 10_000  # points; the projector says itself that it becomes slow beyond
_TILE = 64  # pixels; 100 x 100 of them are 6400 a side, and browsers draw at most 8192
_NAMES = ("id", "label", "labels", "modalities", "text")


class Projector:
    """Collects a sample of points, and writes it.

    Args:
        folder: the folder that is written.
        rows: rows of the embedding folder, of which `MOST` are drawn.
        seed: of the draw.

    Raises:
        SailError: the folder exists.
    """

    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        if folder.exists():
            raise SailError(f"{folder} exists; name another --projector, or remove it.")
        self._folder = folder
        self._drawn = f", of {MOST:,} rows that were drawn" if rows > MOST else ""
        self._chosen = np.random.default_rng(seed).choice(rows, min(MOST, rows), replace=False, shuffle=False)
        self._vectors: list[np.ndarray] = []
        self._lines: list[str] = []
        self._images: list[bytes | None] = []

    def add(self, block: Block) -> None:
        """Takes the points of a block that were drawn."""
        for at in np.flatnonzero(np.isin(block.rows, self._chosen)):
            shown = block.shown[at] or NOTHING
            cells = (block.ids[at], shown.label, ", ".join(shown.labels), shown.modalities, shown.text)
            self._vectors.append(block.vectors[at])
            self._lines.append("\t".join(" ".join(cell.split()) for cell in cells))
            self._images.append(shown.image)

    def write(self) -> str:
        """Writes the folder, which has its name when it is complete; returns what was written, in words."""
        with partial_folder(self._folder) as partial:
            np.savetxt(partial / "tensors.tsv", np.stack(self._vectors), fmt="%.6g", delimiter="\t")
            lines = ["\t".join(_NAMES), *self._lines]
            (partial / "metadata.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            sprite = ""
            if any(self._images):
                self._sprite().save(partial / "sprite.png")
                side = f"single_image_dim: {_TILE}"
                sprite = f'  sprite {{\n    image_path: "sprite.png"\n    {side}\n    {side}\n  }}\n'
            (partial / "projector_config.pbtxt").write_text(
                'embeddings {\n  tensor_name: "embeddings"\n  tensor_path: "tensors.tsv"\n'
                f'  metadata_path: "metadata.tsv"\n{sprite}}}\n'
            )
        return f"{len(self._lines):,} points" + self._drawn

    def _sprite(self) -> Image.Image:
        across = math.ceil(math.sqrt(len(self._images)))
        sprite = Image.new("RGB", (across * _TILE, across * _TILE))
        for number, image in enumerate(self._images):
            if image is not None:
                tile = ImageOps.fit(Image.open(io.BytesIO(image)), (_TILE, _TILE))
                sprite.paste(tile, (number % across * _TILE, number // across * _TILE))
        return sprite
