"""The verb `sweep`: many runs of a config, checked, launched, watched and mended."""

from typing import Any

from sail_jax.cli import sweep_collect, sweep_manifest, sweep_member, sweep_run, sweep_watch


def add_verb(verbs: Any) -> None:
    """Declares the verb and its actions."""
    meaning = "run many configs and seeds: expand a sweep file, check every member, launch them, watch and mend them"
    group = verbs.add_parser(
        "sweep",
        help=meaning,
        description=meaning,
        epilog="example: %(prog)s run configs/sweeps/peak.py --workdir sweeps/peak --config.data.dir=data/glyphs",
    )
    actions = group.add_subparsers(required=True, metavar="ACTION")
    for module in (sweep_run, sweep_watch, sweep_collect, sweep_manifest, sweep_member):
        module.add_actions(actions)
