"""The step compiled ahead of time for other hardware: the report agrees with the step that runs.

Most tests compile for this machine's eight host devices, which stand in for GPUs; `test_gpu_ahead` compiles for GPUs.
"""

import dataclasses

import jax
import pytest
import tiny

from sail_jax import cli
from sail_jax import config as config_lib
from sail_jax.aot import chips
from sail_jax.aot import compile as ahead
from sail_jax.aot.chips import find_devices
from sail_jax.aot.compile import compile_ahead, compile_embedding
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.errors import SailError

pytestmark = pytest.mark.slow

GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def host_devices():
    """Host devices in the place of those of the CUDA plugin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "_gpu_devices", lambda name, shape, node: jax.devices()[: int(shape)])
        yield


@pytest.fixture(scope="module")
def report(world, host_devices):
    """The tiny experiment, with all costly settings, on eight GPUs that this machine does not have."""
    return compile_ahead(config_lib.build(costly(world)), "h100:8")


def costly(world):
    settings = tiny.experiment(world)
    settings.model.remat = "full"
    settings.objective.weights.update(micl=0.1, late_fusion=0.1)
    settings.mesh.update(data=2, fsdp=4)
    return settings


@pytest.fixture
def words(settings):
    """An experiment with only text, since tracing the other towers takes long."""
    for dataset in settings.data.datasets.values():
        dataset.patterns = ("T->T",)
    return settings


@pytest.mark.slow
def test_the_batch_has_the_shapes_of_training(report, settings):
    config = config_lib.build(settings)
    source = BatchSource(config, HostShare(0, config.data.batch_size, 8))
    step = next(step for step in range(9) if source.datasets(step) == (0,))
    arrays = source[step].arrays
    assert [leaf.shape for leaf in jax.tree.leaves(report.batch)] == [leaf.shape for leaf in jax.tree.leaves(arrays)]
    assert report.datasets == ("copair",)  # its pairs show frames on both sides, those of `search` on one
    assert report.memory.batch == sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) // 8
    assert report.items == 32


def test_memory_of_the_state_per_device(report):
    memory = report.memory
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=0.02)
    assert memory.padding < 100  # on CPUs, only the numbers that the step takes as data
    assert memory.temporaries > memory.parameters and memory.total < GIB
    assert report.fits and report.room == 0.9 * 80e9
    assert report.verdict().startswith("It fits")


def test_operations_and_traffic(report):
    assert 1.1 < report.executed / report.model < 1.4
    assert report.sent["NVLink"]["all-gather"] > report.memory.parameters
    assert not any(report.sent["network"].values())
    assert set(report.bounds) == {"arithmetic", "memory", "NVLink", "network"}
    assert report.bounds["arithmetic"] == report.executed / 8 / 989e12
    assert all(bound > 0 for link, bound in report.bounds.items() if link != "network")
    assert report.kernels == dict.fromkeys(("vit", "perceiver", "llm"), ("plain",))


@pytest.mark.slow
def test_the_program_that_embeds(words):
    words.model.llm.layers = 1
    words.eval.batch_size = 12
    words.mesh.update(data=-1, fsdp=4)
    report = compile_embedding(config_lib.build(words), "h100:8")
    assert report.mesh == {"data": 2, "fsdp": 4, "tensor": 1} and report.items == 16  # rounded up to the devices
    assert report.memory.optimizer == 0 < report.memory.parameters and report.fits
    assert report.sent["NVLink"]["all-gather"] > 0 and report.kernels["llm"] == ("plain",)
    setup, *others = map(dict, report.sections().values())
    assert setup["batch"] == "16 items"
    assert not any({"optimizer", "executed over model"} & set(rows) for rows in others)
    small = dataclasses.replace(report, chip=dataclasses.replace(report.chip, memory=1))
    assert "config.eval.batch_size" in small.verdict()


@pytest.mark.slow
def test_a_larger_batch_sends_only_more_embeddings(report, world):
    settings = costly(world)
    settings.data.batch_size = 64
    larger = compile_ahead(config_lib.build(settings), "h100:8")
    more = {kind: larger.sent["NVLink"][kind] - count for kind, count in report.sent["NVLink"].items()}
    pairs, width = larger.batch.tokens.shape[0] - report.batch.tokens.shape[0], settings.model.llm.width
    sides, length = report.batch.tokens.shape[1:]
    # Every loss gathers the vectors of both sides, a vector for each pattern and loss, and the keys of items.
    assert more["all-gather"] < 16 * pairs * sides * width * 4
    assert more["all-reduce"] < 16 * pairs * sides * width * 4
    # Each of four devices holds a part of the embedding width: token embeddings are exchanged, and their gradients.
    exchange = pairs / 8 * sides * length * width * 4 * 3 / 4
    assert more["collective-permute"] == pytest.approx(2 * exchange) and larger.sent["NVLink"]["all-to-all"] == 0


def test_the_verdict_on_too_little_memory(report):
    small = dataclasses.replace(report.chip, memory=report.memory.total)
    assert not dataclasses.replace(report, chip=small).fits
    assert "mesh.fsdp" in dataclasses.replace(report, chip=small).verdict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "temporaries"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (72.99G) "
            "exceeds available HBM (15.75G).",
            72.99 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * GIB),
    ],
)
def test_a_compiler_that_runs_out_of_memory(words, monkeypatch, refusal, temporaries):
    def refuse(traced, chip):
        return None, refusal

    monkeypatch.setattr(ahead, "_compile", refuse)
    found = compile_ahead(config_lib.build(words), "h100:8")
    assert found.memory.temporaries == pytest.approx(temporaries, rel=0.01)
    assert not found.fits and refusal in found.verdict() and found.sent == {}
    assert found.executed > 0 and "NVLink" not in found.bounds and not found.kernels


@pytest.mark.parametrize(
    ("topology", "options", "message"),
    [
        ("h100:6", {}, "batch_size"),
        ("h100:8", {"stage": "2_more"}, "2_more"),
        ("h100:8", {"dataset": "copiar"}, "copair"),
    ],
)
def test_wrong_arguments(settings, topology, options, message):
    with pytest.raises(SailError, match=message):
        compile_ahead(config_lib.build(settings), topology, **options)


def test_a_config_without_data_sets_is_refused(settings):
    settings.data.datasets = {}
    with pytest.raises(SailError, match="at least one training set"):
        compile_ahead(config_lib.build(settings), "h100:8")


@pytest.mark.slow
def test_the_data_sets_are_those_of_the_stage(words, monkeypatch):
    words.stages = {
        "1_search": {"steps": 10, "weights": {"search": 1.0}},
        "2_hard": {"steps": 10, "weights": {"copair": 1.0}, "mine": ("copair",), "hard_negatives": 2},
    }
    config = config_lib.build(words)
    monkeypatch.setattr(ahead, "_compile", lambda traced, chip: (None, "RESOURCE_EXHAUSTED"))
    search = compile_ahead(config, "h100:8")
    assert search.datasets == ("search",) and search.larger_stages == ("2_hard",)
    assert "2_hard" in search.verdict()
    hard = compile_ahead(config, "h100:8", stage="2_hard")
    assert hard.datasets == ("copair",) and hard.items == 16 * 4 and not hard.larger_stages


def test_from_the_command_line(report, settings, tmp_path, capsys, monkeypatch):
    asked = []

    def found(config, topology, **options):
        asked.append((topology, options))
        return report

    monkeypatch.setattr("sail_jax.aot.compile.compile_ahead", found)
    config_lib.save(config_lib.build(settings), tmp_path / "config.json")
    command = ["describe", "--config", str(tmp_path / "config.json")]
    assert cli.main([*command, "--topology", "h100:8", "--dataset", "copair"]) == 0
    assert asked == [("h100:8", {"stage": "", "dataset": "copair"})]
    said = capsys.readouterr().out
    for part in ("8 x H100", "temporaries", "executed over model", "attention of llm", "NVLink", "items/s", "It fits"):
        assert part in said
    assert "Next: python -m sail_jax train" in said
    assert cli.main([*command, "--dataset", "copair"]) == 2  # which batch, of which step?
    assert cli.main([*command, "--program", "embed"]) == 2
    assert cli.main([*command, "--program", "embed", "--topology", "h100:8", "--dataset", "copair"]) == 2


def test_for_tpus(settings):
    pytest.importorskip("libtpu")
    report = compile_ahead(config_lib.build(settings), "v5e:2x2")
    assert report.devices == 4 and report.fits and report.memory.temporaries > 0 and report.memory.padding >= 0
    assert sum(report.sent["ICI"].values()) > 0
    with pytest.raises(SailError, match="refused by libtpu"):
        find_devices("v5e:3x3")
