"""Suggests the settings that a mistyped key may mean."""

import difflib
from collections.abc import Sequence

from sail_jax.config.everyday_words import EVERYDAY_WORDS

_NEAR = 0.7  # lowest ratio of difflib for two similar names
_SHOWN = 3


def similar_keys(key: str, settings: Sequence[str]) -> list[str]:
    """Returns at most three settings or groups that an unknown key may mean, the likeliest first.

    Matches the last part of the key: the settings of an everyday word, else those with the same last part, else those
    with a similar one. Sorts them by the similarity of the whole keys.

    Args:
        key: dotted, such as "learning_rate" or "data.bath_size".
        settings: the keys of all settings.
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
