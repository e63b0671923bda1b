"""Manifests for pods, against schemas of what GKE and SkyPilot take."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.errors import SailError
from sail_jax.sweeps import Sweep, SweepFolder, expand, grid, pods, read
from sail_jax.sweeps.pods import Hardware

SCHEMAS = json.loads(Path(__file__).with_name("pod_schemas.json").read_text())
FOLDER = SweepFolder("/shared/sweeps/rates")
MEMBERS = expand(Sweep("quickstart", [grid("optimizer.peak", [1e-3, 2e-3])], seeds=range(2)))


def jobsets(hardware, sweep="Rates_2"):
    text = pods.jobsets(
        FOLDER, sweep, MEMBERS, Hardware.parse(hardware), image="hub/sail:1", claim="shared", mount=Path("/shared")
    )
    found = list(yaml.safe_load_all(text))
    for jobset in found:
        jsonschema.validate(jobset, SCHEMAS["jobset"])
    return found


@pytest.mark.parametrize(
    ("text", "hosts", "per_host"),
    [
        ("v5e:2x4", 1, 8),
        ("v5e:4x4", 4, 4),
        ("v6e:1x1", 1, 1),
        ("v5p:4x4x4", 16, 4),
        ("v4:2x2x1", 1, 4),
        ("h100:4", 1, 4),
        ("b200:16", 2, 8),
    ],
)
def test_machines_of_hardware(text, hosts, per_host):
    hardware = Hardware.parse(text)
    assert (hardware.hosts, hardware.per_host) == (hosts, per_host)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h10:8", "There is no accelerator 'h10'. Did you mean h100"),
        ("v5e:16", "write a slice as v5e:4x4"),
        ("h100:2x2", "a number of GPUs as h100:8"),
        ("h100:12", "no whole number of machines of 8 chips"),
        ("v5p", "write a slice"),
        ("h100:" + "9" * 5000, "write a slice"),
    ],
)
def test_hardware_that_is_none(text, said):
    with pytest.raises(SailError, match=said):
        Hardware.parse(text)


@pytest.mark.parametrize("hardware", ["v5e:4x4", "v5p:2x2x1", "h100:8", "h200:32"])
def test_a_jobset_per_member_is_valid(hardware):
    found = jobsets(hardware)
    assert len({jobset["metadata"]["name"] for jobset in found}) == len(MEMBERS)
    assert [jobset["metadata"]["annotations"]["sail-jax/member"] for jobset in found] == [m.name for m in MEMBERS]
    assert found == jobsets(hardware)


def test_a_jobset_asks_for_its_slice_and_restarts_what_was_preempted():
    job = jobsets("v5e:4x4")[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"][3:] == [
        *("sweep", "member", "peak=0.001,seed=0", "--workdir", "/shared/sweeps/rates", "--distributed"),
    ]
    evicted, failed = job["podFailurePolicy"]["rules"]
    assert evicted["action"] == "Count" and failed["action"] == "FailJob"
    assert failed["onExitCodes"] == {"containerName": "member", "operator": "NotIn", "values": [75]}
    (alone,) = jobsets("h100:8")[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert "--distributed" not in alone["command"] and alone["resources"] == {"limits": {"nvidia.com/gpu": 8}}


@pytest.mark.parametrize("sweep", ["9 lives", "Ünï", "x" * 90])
def test_names_are_those_that_kubernetes_takes(sweep):
    jobsets("h100:1", sweep)


@pytest.mark.parametrize(("hardware", "shown"), [("h100:8", "H100:8"), ("v5e:4x4", "tpu-v5e-16")])
def test_a_skypilot_task_is_valid(hardware, shown):
    text = pods.skypilot_task(
        FOLDER, "rates", Hardware.parse(hardware), image="hub/sail:1", bucket="gs://x", mount=Path("/shared"), spot=True
    )
    task = yaml.safe_load(text)
    jsonschema.validate(task, SCHEMAS["skypilot"])
    assert task["resources"]["accelerators"] == shown and task["envs"]["MEMBER"] is None
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}
    assert ('"$MEMBER" --workdir /shared/sweeps/rates' in task["run"]) and ("--distributed" in task["run"]) == (
        "tpu" in shown
    )


def test_several_machines_with_gpus_are_none_of_skypilots():
    with pytest.raises(SailError, match="take --kind jobset"):
        pods.skypilot_task(
            FOLDER, "r", Hardware.parse("h100:16"), image="i", bucket="gs://x", mount=Path("/s"), spot=False
        )


def test_the_verb_writes_the_manifest_beside_the_sweep(settings, tmp_path, capsys):
    settings.data.datasets = {"copair": {"table": "tables/copair.parquet"}}
    settings.eval.tasks = {"i2i": {"table": "tables/copair.parquet", "corpus": "targets"}}
    config_lib.save(config_lib.build(settings), tmp_path / "base.json")
    (tmp_path / "rates.py").write_text(
        "from sail_jax.sweeps import Sweep\n\ndef sweep():\n"
        f"    return Sweep(base={str(tmp_path / 'base.json')!r}, seeds=range(3))\n"
    )
    words = ["sweep", "manifest", str(tmp_path / "rates.py"), "--workdir", str(tmp_path / "sweep"), "--image", "i"]
    words += ["--accelerator", "h100:8", "--volume", "gs://b"]
    assert main([*words, "--kind", "jobset", "--mount", "/elsewhere"]) == 2
    assert "is not below --mount /elsewhere" in capsys.readouterr().err and not (tmp_path / "sweep").exists()
    assert main([*words, "--kind", "jobset", "--mount", "/"]) == 0
    found = list(yaml.safe_load_all((tmp_path / "sweep" / "jobsets.yaml").read_text()))
    assert len(found) == 3 and [member.status.state for member in read(tmp_path / "sweep").members] == ["waiting"] * 3
    assert main([*words, "--kind", "skypilot", "--mount", "/"]) == 0
    said = capsys.readouterr().out
    assert "kubectl apply -f" in said and "sky jobs launch" in said and "Next: python -m sail_jax sweep status" in said
    assert (tmp_path / "sweep" / "members.txt").read_text().split() == [f"main,seed={seed}" for seed in range(3)]
