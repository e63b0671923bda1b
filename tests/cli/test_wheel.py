"""A wheel of the checkout, installed without it, runs the quickstart."""

import os
import shutil
import subprocess
import sys

import pytest
import tiny

# What makes the quickstart small.
SMALL = [
    "synthetic.num_items=96",
    "synthetic.items_per_topic=8",
    "synthetic.test_queries=24",
    "synthetic.searches=40",
    "synthetic.test_searches=6",
    "synthetic.num_users=50",
    "data.batch_size=8",
    "train.steps=2",
    "data.datasets.copair.patterns=('T->T',)",
    "data.datasets.heard.weight=0",
    "optimizer.warmup_steps=1",
    "model.llm.layers=1",
    "model.vit.layers=1",
    "model.audio.depths=(1,)",
    "model.audio.heads=(2,)",
    "eval.untrained=False",
    "eval.batch_size=32",
    "eval.tasks.i2i.views=()",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package of a wheel, and the command."""
    root = tmp_path_factory.mktemp("wheel")
    checkout = root / "checkout"
    # Building writes beside the sources, and must not pick up what an older build left there.
    for name in ("sail_jax", "configs"):
        shutil.copytree(tiny.REPO / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(tiny.REPO / name, checkout)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", root / "wheels", checkout], check=True)
    (wheel,) = (root / "wheels").glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", root / "site", wheel], check=True)
    shutil.rmtree(checkout)
    return root / "site"


def run(installed, folder, *words):
    """Runs the installed command in a folder outside of the checkout; what it imports is listed in stderr."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONPROFILEIMPORTTIME": "1"}
    # One device, not the eight of the tests, compiles sooner.
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    command = [sys.executable, installed / "bin" / "sail-jax", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_an_installed_wheel_runs_the_quickstart(installed, tmp_path):
    done = run(installed, tmp_path, "quickstart", *(f"--config.{setting}" for setting in SMALL))
    assert done.stdout.startswith("1/4") and "Next: sail-jax embed" in done.stdout
    assert "sail_jax.training.loop" in done.stderr and "torch.nn" not in done.stderr
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()


@pytest.mark.slow
def test_an_installed_wheel_has_every_experiment(installed, tmp_path):
    names = sorted(path.name for path in (tiny.REPO / "configs").glob("*.py"))
    assert sorted(path.name for path in (installed / "sail_jax" / "configs").glob("*.py")) == names
    presets = sorted(path.stem for path in (tiny.REPO / "configs" / "presets").glob("*.py"))
    code = (
        "import sail_jax, sys\nfrom sail_jax import config\n"
        "assert sail_jax.__file__.startswith(sys.argv[1])\n"
        "for name in config.packaged(): assert config.load(f'configs/{name}.py') == config.load(name)\n"
        "from sail_jax import sweeps\nassert sweeps.load('peak').base == 'quickstart'\n"
        f"assert config.presets() == {presets}\n"
        "for name in config.presets(): assert config.build(config.preset(name)) == config.load(name)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", code, str(installed)], cwd=tmp_path, env=environment, check=True)
