"""Which settings a mistyped key may stand for."""

import difflib
from collections.abc import Sequence

from sail_jax.config.everyday_words import EVERYDAY_WORDS

_NEAR = 0.7  # difflib's ratio from which two names are near
_SHOWN = 3


def similar_keys(key: str, settings: Sequence[str]) -> list[str]:
    """The settings, or groups of them, that an unknown key may stand for, at most three, the likeliest first; it may well be none.

    Args:
        key: dotted, such as "learning_rate" or "data.bath_size".
        settings: the keys that there are. Those whose last part is an everyday word for the key's, else the same, else near it, are
            meant; of several, those whose whole key is nearest come first.
    """
    last = key.rpartition(".")[2].lower().replace("-", "_")
    if last in EVERYDAY_WORDS:
        return list(EVERYDAY_WORDS[last])
    by_name: dict[str, list[str]] = {}
    groups = {setting[:end] for setting in settings for end, letter in enumerate(setting) if letter == "."}
    for setting in [*settings, *sorted(groups)]:
        by_name.setdefault(setting.rpartition(".")[2], []).append(setting)
    names = [last] if last in by_name else difflib.get_close_matches(last, by_name, n=_SHOWN, cutoff=_NEAR)
    meant = [setting for name in names for setting in by_name[name]]
    return sorted(meant, key=lambda setting: -difflib.SequenceMatcher(None, key, setting).ratio())[:_SHOWN]
