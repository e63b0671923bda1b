"""The action `sweep manifest`: files that run the members of a sweep on pods."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax.buckets import address, place
from sail_jax.cli.common import console, declare, print_next
from sail_jax.cli.sweep_start import alone, checked_sweep
from sail_jax.errors import SailError


def add_actions(actions: Any) -> None:
    """Declares the action."""
    sub = declare(
        actions,
        "manifest",
        run,
        "check a sweep, and write what runs its members on pods: JobSets for GKE, or a SkyPilot task",
        "configs/sweeps/peak.py --workdir /shared/sweeps/peak --kind jobset --accelerator v5e:4x4 "
        "--image IMAGE --mount /shared --volume CLAIM --config.data.dir=/shared/data/glyphs",
        workdir="folder of the sweep, which pods see under the same path; it is written",
        config="",
        kept="run the same command again.",
    )
    sub.add_argument("file", type=Path, help="sweep file, as for `sweep run`")
    sub.add_argument("--kind", required=True, choices=("jobset", "skypilot"), help="what is written")
    sub.add_argument(
        "--accelerator", required=True, help="what a member runs on: a TPU slice as v5e:4x4, GPUs as h100:8"
    )
    sub.add_argument("--image", required=True, help="container image that has this package")
    sub.add_argument(
        "--mount", required=True, type=Path, help="where pods mount the storage that holds the sweep and its data"
    )
    sub.add_argument(
        "--volume", required=True, help="that storage: a persistent volume claim, or for SkyPilot a bucket's address"
    )
    sub.add_argument("--spot", action="store_true", help="SkyPilot: use machines that may be taken away")
    sub.add_argument("--topology", help="compile the step of every distinct program for this hardware first")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Checks the sweep, writes it into its folder, and writes the manifest there."""
    from sail_jax import sweeps
    from sail_jax.sweeps import pods
    from sail_jax.sweeps.begin import write_sweep
    from sail_jax.sweeps.search import NO_QUEUE

    hardware = pods.Hardware.parse(options.accelerator)
    sweep, folder, checked = checked_sweep(options, overrides)
    if sweep.search:
        raise SailError(NO_QUEUE)
    for path in (folder.path, *(place(member.config.data.dir) for member in checked)):
        if not address(path) and not path.is_relative_to(options.mount):
            raise SailError(f"{path} is not below --mount {options.mount}: pods would not find it.")
    with alone(folder):
        write_sweep(folder, sweep, checked)
    members = [member.record.member for member in sweeps.read(folder.path).members if member.status.state != "done"]
    where = {"image": options.image, "mount": options.mount}
    if options.kind == "jobset":
        text = pods.jobsets(folder, sweep.name, members, hardware, claim=options.volume, **where)
        output, start = folder.path / "jobsets.yaml", "kubectl apply -f {output}"
    else:
        text = pods.skypilot_task(folder, sweep.name, hardware, bucket=options.volume, spot=options.spot, **where)
        output = folder.path / "skypilot.yaml"
        start = "for member in $(cat {names}); do sky jobs launch -y -d -n {dns} --env MEMBER=$member {output}; done"
        names = folder.path / "members.txt"
        names.write_text("".join(f"{member.name}\n" for member in members), encoding="utf-8")
    output.write_text(text, encoding="utf-8")
    filled = start.format(output=output, names=folder.path / "members.txt", dns=pods.dns_name(sweep.name, ""))
    console.print(f"{len(members)} members are not done. Start them: {filled}", highlight=False)
    print_next(options, "sweep", "status", "--workdir", options.workdir)
