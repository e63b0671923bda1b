"""The share of the towers' computation that is not padding, for packed and for padded batches.

    python -m experiments.benchmarks.packing

Items have 1 to 8 frames and short texts. The frames and texts of a device's part of a batch are drawn, and laid out by
the code that builds training batches. A frame is 1,024 patch tokens, as at full size. Nothing is timed: the figures are
the same on any machine.
"""

import argparse

import numpy as np

from experiments.benchmarks import common
from sail_jax.batch import TokenType
from sail_jax.data.collate import capacity, collate
from sail_jax.data.features import ItemFeatures, View
from sail_jax.data.token_budget import fit_texts, token_room
from sail_jax.items import TEXT_FIELDS
from sail_jax.patterns import Pattern

PATCHES, LATENTS, MOST_FRAMES, MOST_TOKENS = 1024, 16, 8, 320
PROMPT, MEAN_TEXT, MOST_TEXT = 24, 78, 256
# A little under the means, 4.5 frames and 78 tokens: the items with most are cut to fit.
FRAME_BUDGET, TEXT_BUDGET = 4.4, 76.0


def draw(rng: np.random.Generator) -> ItemFeatures:
    """An item; its frames have a single pixel, as only their number counts."""
    frames = int(rng.integers(1, MOST_FRAMES + 1))
    text = int(np.clip(rng.gamma(2.0, MEAN_TEXT / 2.0), 1, MOST_TEXT))
    kinds = [TokenType.PROMPT] * PROMPT + [TokenType.VISION] * LATENTS + [TokenType.TEXT] * text
    types = np.zeros(MOST_TOKENS, np.int8)
    types[: len(kinds)] = kinds
    pixels = np.zeros((frames, 1, 1, 3), np.uint8)
    return ItemFeatures(types.astype(np.int32), types, pixels, np.zeros((0, 1), np.int16), None, 0, 0, True)


def shares(pairs: int, seed: int) -> dict[str, float]:
    """Useful over executed tokens of one device's part of a batch, packed and padded, and what was cut."""
    rng = np.random.default_rng(seed)
    whole = [(draw(rng), draw(rng)) for _ in range(pairs)]
    features, text_cut = fit_texts(whole, 1, TEXT_BUDGET)
    room = capacity(2 * pairs, FRAME_BUDGET, 1)
    batch, frames_cut = collate(
        features, [0] * pairs, [None] * pairs, groups=1, frame_capacity=room, clip_capacity=0, audio_width=1
    )
    view = View("VT", TEXT_FIELDS, "")
    tokens = token_room(
        [Pattern("O", "O")],
        [(view, view)],
        pairs=pairs,
        budget=TEXT_BUDGET,
        latents=LATENTS,
        prompt_tokens=lambda _: PROMPT,
    )
    kept = (batch.frame_item >= 0).sum() * PATCHES + (batch.token_types != TokenType.PAD).sum()
    drawn_frames = sum(len(item.frames) for pair in whole for item in pair)
    drawn_tokens = sum(int((item.token_types != TokenType.PAD).sum()) for pair in whole for item in pair)
    return {
        "packed": kept / (room * PATCHES + tokens),
        "padded": (drawn_frames * PATCHES + drawn_tokens) / (2 * pairs * (MOST_FRAMES * PATCHES + MOST_TOKENS)),
        "frames_cut": frames_cut / drawn_frames,
        "text_cut": text_cut / drawn_tokens,
    }


def main() -> None:
    """Parses the command line, draws, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=50, help="batches that are drawn")
    options = parser.parse_args()
    figures = {"machine": common.machine(), "versions": common.versions("numpy"), "rows": []}
    for pairs in (64, 256):
        drawn = [shares(pairs, seed) for seed in range(options.batches)]
        mean = {name: float(np.mean([entry[name] for entry in drawn])) for name in drawn[0]}
        figures[f"pairs_per_device_{pairs}"] = mean
        cut = f"{mean['frames_cut']:.1%} of frames and {mean['text_cut']:.1%} of tokens cut"
        figures["rows"].append(
            {
                "what": "Useful over executed tokens, 1 to 8 frames, 78 text tokens on average, "
                f"{pairs} pairs per device",
                "ours": f"{mean['packed']:.3f} packed; {cut}",
                "peer": f"{mean['padded']:.3f} padded",
                "ratio": mean["packed"] / mean["padded"],
            }
        )
    common.write("packing", figures)


if __name__ == "__main__":
    main()
