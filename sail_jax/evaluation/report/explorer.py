"""Draws the map that readers explore: its controls, and the data that its script draws."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.evaluation.report.data import RunReport, SpaceMap
from sail_jax.evaluation.report.map_items import ACROSS, SHEET, TILE
from sail_jax.evaluation.report.style import GREY, LINES

SCRIPTS = tuple(Path(__file__).with_name(name) for name in ("page.js", "map_view.js", "explorer.js"))
_FEWEST = 250  # items to which a map is cut, at most, to keep the page small
_CONTROLS = """<div class="controls">
<label>Task <select id="map-task"></select></label>
<label>Colour <select id="map-colour"></select></label>
<label>Filter <input id="map-filter" type="search" placeholder="text, id or label"></label>
<button type="button" id="map-lasso" aria-pressed="false">Lasso</button>
<button type="button" id="map-in" aria-label="Zoom in">+</button>
<button type="button" id="map-out" aria-label="Zoom out">−</button>
<button type="button" id="map-reset">Reset</button>
<button type="button" id="map-png">PNG</button>
<button type="button" id="map-csv">CSV</button>
</div>
<div class="explored"><div><div id="map-views"></div><div id="map-legend"></div></div>
<div class="side"><h3 id="map-title" aria-live="polite"></h3><ul id="map-list" tabindex="0" aria-labelledby="map-title">
</ul></div></div>"""


def explorer_html(runs: Sequence[RunReport], limit: int) -> tuple[str, int, int]:
    """Returns the HTML of the map, empty without items that can be told apart.

    Args:
        runs: the runs.
        limit: maximum length of the HTML; beyond it, each map shows the first of its items, which are a sample.

    Returns:
        The HTML, the number of items it shows, and the number of all items, over all maps.
    """
    maps = [(run.name, space) for run in runs for space in run.maps if len(space.ids) == len(space.points) > 0]
    if not maps:
        return "", 0, 0
    room, parts = limit // len(maps), []
    for name, space in maps:
        count = len(space.ids)
        while len(text := _json(_data(name, space, count, room // 3))) > room and count > _FEWEST:
            count = max(_FEWEST, count // 2)
        parts.append((text, count))
    shared = {"colours": LINES, "grey": GREY, "tile": TILE, "sheet": SHEET, "across": ACROSS}
    data = _json(shared)[:-1] + f', "maps": [{",".join(text for text, _ in parts)}]}}'
    body = f'<div id="explorer" hidden>{_CONTROLS}</div><script type="application/json" id="map-data">{data}</script>'
    return body, sum(count for _, count in parts), sum(len(space.ids) for _, space in maps)


def _data(run: str, space: SpaceMap, count: int, of_sounds: int) -> Mapping[str, Any]:
    """Returns what the script draws of the first `count` items of a map; sounds of together at most `of_sounds`."""
    points = np.asarray(space.points[:count], np.float64)
    low, span = points.min(axis=0), max(float(np.ptp(points, axis=0).max()), 1e-9)
    x, y = np.round(1000 * (points - low - (np.ptp(points, axis=0) - span) / 2) / span).astype(int).T
    sizes = itertools.accumulate(map(len, space.sounds.values()))
    sounds = {row: space.sounds[row] for row, size in zip(space.sounds, sizes, strict=True) if size <= of_sounds}
    names = {label: number for number, label in enumerate(dict.fromkeys(itertools.chain(*space.all_labels)))}
    return {
        "task": space.task,
        "run": run,
        "x": x.tolist(),
        "y": (1000 - y).tolist(),
        "ids": space.ids[:count],
        "captions": space.captions[:count],
        "has": space.modalities[:count],
        "names": list(names),
        "labels": [[names[label] for label in of] for of in space.all_labels[:count]],
        "near": [[row for row in rows if 0 <= row < count] for rows in space.neighbours[:count]],
        "sounds": {row: sound for row, sound in sounds.items() if int(row) < count},
        "sheets": space.sheets[: -(-count // SHEET)],
    }


def _json(tree: Any) -> str:
    """Returns JSON that no HTML parser takes for markup."""
    return json.dumps(tree, separators=(",", ":")).replace("<", "\\u003c")
