"""Eight host devices for the whole test run, and a small ingested world that tests share."""

import gc
import os
import shutil
import subprocess
import tarfile
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has the environment of the process that started it
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=8",
            # Compiling takes longer than running; the emitters of fusions took half of it.
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false",
            # As `cli.on_cpu` sets it: the devices of a busy machine may wait long for each other.
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        ]
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Tests compile the same steps again and again, in other workers and in processes of their own too.
    _cache = tempfile.TemporaryDirectory(prefix="sail-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    # Where in the source an operation was written is noted for each of them; a fifth of the time of a large step.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of faiss would spin on the cores of other workers
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a hub
# Traces are many small objects that live on; looking for circles among them every 700 takes a twentieth of the time.
gc.set_threshold(100_000, 50, 100)
AXE = "axe-core@4.14.1"  # checks pages for what assistive technology cannot read
# Where transformers puts the code of exported models; else a folder in the user's home.
_code = tempfile.TemporaryDirectory(prefix="sail-jax-code-")
os.environ["HF_MODULES_CACHE"] = _code.name

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import shape_checks  # noqa: E402

shape_checks.install()

import tiny  # noqa: E402

from sail_jax import config as config_lib  # noqa: E402
from sail_jax.data.ingest.ingest import ingest  # noqa: E402
from sail_jax.data.pipeline import open_store  # noqa: E402
from sail_jax.data.synthetic.world import make_world  # noqa: E402
from sail_jax.embedding.embedder import load  # noqa: E402
from training_runs import on_devices, save_untrained  # noqa: E402


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Leaves shapes unchecked, as they are outside the tests: for errors about shapes that a user gets."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small ingested world: the folder that `ingest` wrote."""
    root = tmp_path_factory.mktemp("world")
    config = config_lib.build(tiny.experiment(root / "data"))
    make_world(config.synthetic, config.seed, root / "raw")
    ingest(config, root / "raw", root / "data")
    return root / "data"


@pytest.fixture
def settings(world):
    """The ConfigDict of a tiny experiment on `world`; a test may change it and `config_lib.build` it."""
    return tiny.experiment(world)


@pytest.fixture
def one_device():
    """For a test that does not ask what a mesh does."""
    with on_devices(1):
        yield


@pytest.fixture(scope="session")
def run(world, tmp_path_factory):
    """A run directory whose parameters were never trained."""
    settings = tiny.experiment(world)
    settings.eval.batch_size = 8  # one row for each of eight devices: few shapes to compile
    return save_untrained(tmp_path_factory.mktemp("untrained") / "run", config_lib.build(settings))


@pytest.fixture(scope="session")
def embedder(run):
    """What `run` embeds with, on one device."""
    with on_devices(1):
        return load(run)


@pytest.fixture(scope="session")
def store(embedder):
    """The items of `world`."""
    return open_store(embedder.config)


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless; the test is skipped where it or what drives it is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The path of axe-core's script, which npm fetches; the test is skipped where it cannot."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, for axe-core")
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, timeout=120, check=True)
    except subprocess.SubprocessError:
        pytest.skip(f"npm cannot fetch {AXE}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extract("package/axe.min.js", folder, filter="data")
    return folder / "package/axe.min.js"


def pytest_collection_modifyitems(items):
    """Runs files with slow tests first, so that parallel workers end together; skips GPU tests on CPUs."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if os.environ["JAX_PLATFORMS"] == "cpu":
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
