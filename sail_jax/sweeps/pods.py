"""Writes manifests that run members on pods: JobSets for GKE, and a task file for SkyPilot.

Sources: the JobSet API v1alpha2 (https://jobset.sigs.k8s.io), the labels of GKE's TPU and GPU node pools, SkyPilot's
YAML specification (https://docs.skypilot.co).
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sail_jax.config.schema import nearest
from sail_jax.errors import SailError, Stopped
from sail_jax.sweeps.expand import Member
from sail_jax.sweeps.folder import SweepFolder

# Chip -> label of GKE's node pools, and SkyPilot's name.
_TPUS = {
    "v4": ("tpu-v4-podslice", "tpu-v4"),
    "v5e": ("tpu-v5-lite-podslice", "tpu-v5e"),
    "v5p": ("tpu-v5p-slice", "tpu-v5p"),
    "v6e": ("tpu-v6e-slice", "tpu-v6e"),
}
_GPUS = {
    "a100": ("nvidia-a100-80gb", "A100-80GB"),
    "h100": ("nvidia-h100-80gb", "H100"),
    "h200": ("nvidia-h200-141gb", "H200"),
    "b200": ("nvidia-b200", "B200"),
}
_GPUS_PER_NODE = 8
# Slices of v5e and v6e up to this many chips are one host; larger ones have hosts of four chips.
_ONE_HOST, _CHIPS_PER_HOST = 8, 4
# Seconds that a pod gets to save its state before it is taken away, and restarts of a member that was preempted.
_GRACE, _RESTARTS = 120, 100
_PREEMPTED = Stopped.STATUSES[1]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The accelerators of a member.

    Attributes:
        chip: "v5e", "h100", ...
        topology: shape of a TPU slice, such as "4x4"; empty for GPUs.
        hosts: machines.
        per_host: chips of each.
    """

    chip: str
    topology: str
    hosts: int
    per_host: int

    @classmethod
    def parse(cls, text: str) -> "Hardware":
        """Reads "v5e:4x4" or "h100:16", as `describe --topology` names them.

        Raises:
            SailError: it names no such hardware.
        """
        chip, _, size = text.partition(":")
        if chip not in {**_TPUS, **_GPUS}:
            raise SailError(f"There is no accelerator {chip!r}. Did you mean {nearest(chip, [*_TPUS, *_GPUS])}?")
        if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){1,2}" if chip in _TPUS else r"[1-9]\d{0,8}", size):
            raise SailError(f"--accelerator is {text!r:.200}; write a slice as v5e:4x4 and a number of GPUs as h100:8.")
        chips = math.prod(map(int, size.split("x")))
        one_host = _GPUS_PER_NODE if chip in _GPUS else _ONE_HOST if chip in ("v5e", "v6e") else _CHIPS_PER_HOST
        each = chips if chips <= one_host else _GPUS_PER_NODE if chip in _GPUS else _CHIPS_PER_HOST
        if chips % each:
            raise SailError(f"--accelerator is {text!r}, which is no whole number of machines of {each} chips.")
        return cls(chip, size if chip in _TPUS else "", chips // each, each)


def jobsets(
    folder: SweepFolder,
    sweep: str,
    members: Sequence[Member],
    hardware: Hardware,
    *,
    image: str,
    claim: str,
    mount: Path,
) -> str:
    """Returns YAML with a JobSet for each member.

    A member that is preempted goes on from its last checkpoint; one that fails by itself is not run again.

    Args:
        folder: the folder of the sweep; pods see it under the same path.
        sweep: name of the sweep.
        members: the members to run.
        hardware: what each runs on.
        image: container image that has this package.
        claim: persistent volume claim that holds the sweep and its data.
        mount: where pods mount it.
    """
    documents = [_jobset(folder, sweep, member, hardware, image, claim, mount) for member in members]
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)


def _jobset(
    folder: SweepFolder, sweep: str, member: Member, hardware: Hardware, image: str, claim: str, mount: Path
) -> dict[str, Any]:
    resource = {("google.com/tpu" if hardware.topology else "nvidia.com/gpu"): hardware.per_host}
    words = ["python", "-m", "sail_jax", "sweep", "member", member.name, "--workdir", str(folder.path)]
    container = {
        "name": "member",
        "image": image,
        "command": words + ["--distributed"] * (hardware.hosts > 1),
        "env": [{"name": "JAX_COMPILATION_CACHE_DIR", "value": str(folder.path / "compiled")}],
        "resources": {"limits": resource},
        "volumeMounts": [{"name": "shared", "mountPath": str(mount)}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE,
        "nodeSelector": _node_selector(hardware),
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}],
    }
    job = {
        "parallelism": hardware.hosts,
        "completions": hardware.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": dns_name(sweep, member.name),
            "labels": {"sail-jax/sweep": re.sub(r"[^\w.-]", "-", sweep, flags=re.ASCII)[:63].strip("-_.") or "sweep"},
            "annotations": {"sail-jax/member": member.name},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": _RESTARTS,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "member", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _failure_rules() -> list[dict[str, Any]]:
    """Returns the rules by which a pod that was taken away restarts the member, and one that failed does not."""
    return [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "member", "operator": "NotIn", "values": [_PREEMPTED]},
        },
    ]


def _node_selector(hardware: Hardware) -> dict[str, str]:
    if hardware.topology:
        return {
            "cloud.google.com/gke-tpu-accelerator": _TPUS[hardware.chip][0],
            "cloud.google.com/gke-tpu-topology": hardware.topology,
        }
    return {"cloud.google.com/gke-accelerator": _GPUS[hardware.chip][0]}


def dns_name(sweep: str, member: str) -> str:
    """Returns the name of a member's JobSet, of lower-case letters, digits and dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", sweep.lower()).strip("-")[:30].rstrip("-") or "sweep"
    slug = slug if slug[0].isalpha() else f"s-{slug}"
    return f"{slug}-{hashlib.blake2b(member.encode(), digest_size=4).hexdigest()}"


def skypilot_task(
    folder: SweepFolder, sweep: str, hardware: Hardware, *, image: str, bucket: str, mount: Path, spot: bool
) -> str:
    """Returns a SkyPilot task that runs the member named by its variable MEMBER.

    Args:
        folder: the folder of the sweep; the machine sees it under the same path.
        sweep: name of the sweep.
        hardware: what a member runs on: one machine with GPUs, or a TPU slice.
        image: container image that has this package.
        bucket: address of the bucket that holds the sweep and its data.
        mount: where it is mounted.
        spot: whether to use machines that may be taken away; a member then goes on elsewhere.

    Raises:
        SailError: several machines with GPUs are asked for.
    """
    chips = hardware.hosts * hardware.per_host
    if hardware.topology:
        accelerators = f"{_TPUS[hardware.chip][1]}-{chips}"
    elif hardware.hosts > 1:
        raise SailError(f"A SkyPilot task has one machine of up to {_GPUS_PER_NODE} GPUs; take --kind jobset.")
    else:
        accelerators = f"{_GPUS[hardware.chip][1]}:{chips}"
    together = " --distributed" * (hardware.hosts > 1)
    task = {
        "name": dns_name(sweep, ""),
        "envs": {"MEMBER": None, "JAX_COMPILATION_CACHE_DIR": str(folder.path / "compiled")},
        "resources": {
            "accelerators": accelerators,
            "image_id": f"docker:{image}",
            "use_spot": spot,
            "job_recovery": {"recover_on_exit_codes": [_PREEMPTED]},
        },
        "file_mounts": {str(mount): {"source": bucket, "mode": "MOUNT_CACHED"}},
        "run": f'python -m sail_jax sweep member "$MEMBER" --workdir {folder.path}{together}\n',
    }
    return yaml.safe_dump(task, sort_keys=False, width=120)
