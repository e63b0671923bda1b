"""What the project runs compiles for GPUs and TPUs that are not there, with cuDNN's attention and in little memory.

The quick ones have toy widths; those marked `slow` include the full-size step of each stage and kind of data.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax import config as config_lib
from sail_jax.aot import compile as ahead
from sail_jax.aot.chips import GPU_OPTIONS, find_devices
from sail_jax.aot.kernels import attention_kernels
from sail_jax.config.schema import to_dict
from sail_jax.embedding.forward import inference_mesh, traced_forward
from sail_jax.errors import SailError
from sail_jax.models.gpu_attention import CALL
from sail_jax.vectors import kmeans, score_blocks

pytestmark = pytest.mark.gpu_ahead
slow = pytest.mark.slow

GIB, MIB = 2**30, 2**20
CUDNN = ("cuDNN flash attention",)
EIGHT = ["h100:8", pytest.param("v5e:2x4", marks=slow), pytest.param("v6e:2x4", marks=slow)]
EIGHT.append(pytest.param("v5p:2x2x2", marks=slow))
ANY = [*EIGHT, *(pytest.param(name, marks=slow) for name in ("h100:1", "h100:16", "a100:8", "h200:8", "b200:8"))]


@functools.cache
def devices_of(topology):
    try:
        return find_devices(topology)
    except SailError as error:
        if "pip install" not in str(error):
            raise
        return str(error)


@pytest.fixture(autouse=True)
def compiler(request):
    """Skips a test for chips whose compiler is missing."""
    if isinstance(found := devices_of(request.node.callspec.params["topology"]), str):
        pytest.skip(found)


@pytest.fixture
def compile_step(monkeypatch):
    """Returns (report, programs as text) of the step of a config."""
    texts = []

    def kept(traced, chip, compile_=ahead._compile):
        program, refusal = compile_(traced, chip)
        texts.append(program.as_text() if program else "")
        return program, refusal

    def run(config, topology, **options):
        report = ahead.compile_ahead(config, topology, **options)
        assert not report.refusal
        if report.chip.is_gpu:
            assert_cudnn_alone(report, texts)
        return report, texts

    monkeypatch.setattr(ahead, "_compile", kept)
    return run


def assert_cudnn_alone(report, programs):
    """All attention is cuDNN's, forwards and backwards; no array holds the scores of all queries and keys of a head."""
    assert report.kernels and set(report.kernels.values()) == {CUDNN}
    text = "\n".join(programs)
    calls = {name: shape for line in text.splitlines() if CALL in line for name, shape in [attention_shape(line)]}
    assert {f"{CALL}Softmax", f"{CALL}SoftmaxBackward"} <= set(calls)
    for batch, heads, queries, keys in {shape for _, shape in map(attention_shape, attention_lines(text))}:
        for axes in {tuple(map(int, axes.split(","))) for axes in re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", text)}:
            scores = axes[-2:] == (queries, keys) and axes[-3:-2] in [(heads,), (batch * heads,)]
            assert not scores or queries * keys < 4096, axes  # toy widths are alike by chance


def attention_lines(text):
    return [line for line in text.splitlines() if f'custom_call_target="{CALL}' in line]


def attention_shape(line):
    config = json.loads(re.search(r"backend_config=(\{.*\})", line).group(1))["cudnn_fmha_backend_config"]
    shape = tuple(map(int, config["intermediate_tensor_shape"]["dimensions"]))
    return re.search(r'custom_call_target="([^"]*)"', line).group(1), shape


def experiment(**changes):
    """The tiny experiment in bfloat16, with changes by dotted names that have "__" for the dots."""
    settings = tiny.experiment("data")
    for name, value in ({"model__dtype": "bfloat16"} | changes).items():
        *groups, last = name.split("__")
        functools.reduce(getattr, groups, settings)[last] = value
    return config_lib.build(settings)


COSTLY = {
    "model__remat": "full",
    "objective__weights__micl": 0.1,
    "objective__weights__late_fusion": 0.1,
    "data__text_budget": 40.0,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
}
VARIANTS = {
    "ring loss": {"objective__score_block": 8},
    "media in chunks": {"model__media_chunk": 2, "data__batch_size": 32},
    "LoRA": {"lora__rank": 2},
    "dual tower": {"model__kind": "dual_tower"},
    "causal": {"model__llm__causal": True},
    "latents": {"model__perceiver__attention": "latents", "model__remat": "dots"},
    "Qwen3": {"model__llm__qk_norm": True, "model__llm__qkv_bias": False},
    "mixed batches": {"data__sampling": "mixed"},
    "split moments": {"mesh__shard_optimizer": True},
    "all costly settings": COSTLY | {"data__batch_size": 32},
}


@pytest.mark.parametrize("topology", ANY)
def test_a_step_in_parts_with_all_costly_settings(compile_step, topology):
    changes = COSTLY if topology != "h100:1" else COSTLY | {"mesh__fsdp": 1, "mesh__tensor": 1}
    config = experiment(data__batch_size=32, train__micro_batches=2, **changes)
    report, _ = compile_step(config, topology)
    assert report.fits and report.memory.total < 256 * MIB
    assert all(sum(sent.values()) > 0 for link, sent in report.sent.items() if link != "network") or report.devices == 1
    assert ("network" in report.sent and sum(report.sent["network"].values()) > 0) == (topology == "h100:16")


@slow
@pytest.mark.parametrize("topology", EIGHT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_the_step(compile_step, topology, variant):
    report, _ = compile_step(experiment(**VARIANTS[variant]), topology)
    assert report.fits and report.memory.total < 256 * MIB


@slow
@pytest.mark.parametrize("topology", EIGHT)
@pytest.mark.parametrize("dataset", ["search", "seq_content_multi", "ids"])
def test_every_kind_of_data(compile_step, topology, dataset):
    """Pairs of items are what the other tests have."""
    recommender = to_dict(config_lib.load(tiny.REPO / "configs" / "recommender.py"))
    changes = {"stages": recommender["stages"], "data__datasets": recommender["data"]["datasets"]}
    config = experiment(objective__teachers=recommender["objective"]["teachers"], **changes)
    stage = next(name for name, stage in recommender["stages"].items() if dataset in stage["weights"])
    report, _ = compile_step(config, topology, stage=stage, dataset=dataset)
    assert report.datasets == (dataset,) and report.memory.total < 256 * MIB


# Stage, data set, and a bound in GiB for one of eight GPUs: a quarter above the 12.2, 8.9, 8.9 and 28.2 measured. The
# hard negatives of the last stage triple the items. All other sets and stages of the config have one of these programs,
# but for searches, which are scores without COSENT.
FULL = [
    ("1_broad", "copair", 15),
    ("1_broad", "cls", 11),
    ("2_target", "score", 11),
    ("3_hard", "hashtag", 35),
]


@slow
@pytest.mark.parametrize(("stage", "dataset", "most"), FULL)
@pytest.mark.parametrize("topology", ["h100:8", "h100:1", "v5p:2x2x2"])
def test_the_full_size_step(compile_step, topology, stage, dataset, most):
    """Eight pairs a chip; on GPUs it takes minutes each."""
    count = len(devices_of(topology)[1])
    overrides = [f"data.batch_size={8 * count}", f"mesh.fsdp={count}"]
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py", overrides)
    report, _ = compile_step(config, topology, stage=stage, dataset=dataset)
    assert report.fits
    if report.chip.is_gpu:
        # A GPU alone holds all of the state and its gradient, not an eighth: 24 GiB more were measured.
        whole = 30 if count == 1 else 0
        assert report.memory.total < (most + whole) * GIB


@slow
@pytest.mark.parametrize("topology", ["h100:8", "h100:1", "v5p:2x2x2"])
def test_the_full_size_forward_pass(topology):
    """64 of the longest items."""
    count = len(devices_of(topology)[1])
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py", [f"mesh.fsdp={count}"])
    report = ahead.compile_embedding(config, topology)
    assert report.fits
    if report.chip.is_gpu:
        assert set(report.kernels.values()) == {CUDNN}
        assert report.memory.total < (3.3 if count > 1 else 21.5) * GIB  # 2.6 and 17.2 were measured


def compiled(chip, lowered):
    return lowered.compile(compiler_options=GPU_OPTIONS if chip.is_gpu else None)


@slow
@pytest.mark.parametrize("topology", EIGHT)
@pytest.mark.parametrize(("rows", "length"), [(32, 8), (8, 64), (32, 96)])
def test_the_forward_pass_of_the_embedder(topology, rows, length):
    chip, devices = devices_of(topology)
    config = experiment(mesh__fsdp=4)
    media = {"frames": 2 * rows, "clips": rows} if length > 8 else {"frames": 0, "clips": 0}
    mesh = inference_mesh(config.mesh, devices)
    traced = traced_forward(config, mesh, rows=rows, length=length, views=("VTA", "T"), **media)
    program = compiled(chip, traced.lower())
    text = program.as_text()
    if chip.is_gpu:
        towers = ("vit", "perceiver", "llm") if media["frames"] else ("llm",)
        assert attention_kernels([text]) == dict.fromkeys(towers, CUDNN) and f"{CALL}SoftmaxBackward" not in text
    assert program.memory_analysis().temp_size_in_bytes < 128 * MIB


@pytest.mark.parametrize("topology", ["h100:8", pytest.param("h100:1", marks=slow), *EIGHT[1:]])
@pytest.mark.parametrize("what", ["histogram", "highest scores", "k-means", "nearest centroids"])
def test_search_and_clustering(topology, what):
    """Blocks of the default sizes of mining, and of codebooks; residual k-means runs the same two programs."""
    rows, columns, width, k = 256, 8192, 1536, 100
    chip, devices = devices_of(topology)
    axis = "queries" if what in ("histogram", "highest scores") else "blocks"
    mesh, blocks = Mesh(devices, (axis,)), 2 * len(devices)

    def given(shape, dtype=jnp.float32, split=False):
        spec = PartitionSpec(axis) if split else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    pairs = (given((blocks, 8), jnp.int32, split=True),) * 2
    queries, target = given((blocks, rows, width), split=True), given((columns, width))
    best = given((blocks, rows, k), jnp.int32, split=True), given((blocks, rows, k), split=True)
    members, sums = given((blocks, rows), bool, split=True), (given((k, width)), given((k,), jnp.int32))
    function, arguments = {
        "histogram": (score_blocks._count, (queries, target, pairs)),
        "highest scores": (score_blocks._merge, (queries, target, pairs, best, given(()), given((), jnp.int32))),
        "k-means": (kmeans._add, (queries, members, sums[0], sums)),
        "nearest centroids": (kmeans._assign, (queries, sums[0])),
    }[what]
    usage = compiled(chip, function.lower(*arguments, mesh=mesh)).memory_analysis()
    assert usage.temp_size_in_bytes < 32 * rows * columns * 4  # some blocks of scores, of 8 MiB each
