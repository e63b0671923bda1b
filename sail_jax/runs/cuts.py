"""What training leaves out of its batches, by its name in the training log."""

from collections.abc import Mapping

# What is cut -> what it is, and the setting that leaves room for more.
CUTS = {
    "media_cut": ("frames and clips", "data.frame_budget or data.clip_budget"),
    "text_cut": ("text tokens", "data.text_budget"),
    "prompt_cut": ("text tokens", "prompt.max_tokens"),
    "items_cut": ("items of histories", "distinct_items of the data set"),
}


def say_cuts(cuts: Mapping[str, int]) -> str:
    """Returns a sentence on what was cut, with the settings to raise; empty if nothing was."""
    parts = [f"{cuts[name]:,} {what} (raise {setting})" for name, (what, setting) in CUTS.items() if cuts.get(name, 0)]
    return f"Cut to fit: {', '.join(parts)}." if parts else ""
