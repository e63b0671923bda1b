"""Config files, overrides and error messages; every file under configs/ is tested, found by glob."""

import fnmatch
import re

import jax
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.config.model import ModelConfig
from sail_jax.config.schema import declared, meanings
from sail_jax.convert.init_from import PARTS
from sail_jax.errors import SailError
from sail_jax.models.describe import parameter_table
from sail_jax.models.model import init_params
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.objectives.objective import make_objective
from sail_jax.training.optimizer import make_schedule
from sail_jax.training.stages import plan

CONFIGS = sorted((tiny.REPO / "configs").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path, kind):
    config = config_lib.load(path, [f"model.kind={kind}"])
    assert set(init_shapes(config.model)) == set(PARTS[kind])
    assert config.prompt.max_tokens <= config.model.bert.max_positions
    check_widths(config.objective.matryoshka, config.model.llm.width)
    stages = plan(config, path.parent)
    assert all(make_schedule(stage.config.optimizer, stage.steps, stage=stage.name) for stage in stages)
    assert all(make_objective(stage.config).recipe([0]).losses for stage in stages)
    assert config.data.datasets and config.eval.tasks


def init_shapes(model: ModelConfig):
    return jax.eval_shape(lambda: init_params(model, 0))


def test_the_paper_size_model_has_the_published_parameter_counts():
    counts = dict(parameter_table(config_lib.load(tiny.REPO / "configs" / "sail_1b5.py").model))
    assert counts["llm"] == 1_543_714_304  # Qwen2.5-1.5B without a head
    assert 300e6 < counts["vit"] < 315e6  # AIMv2-L
    assert counts["total"] == sum(count for name, count in counts.items() if name != "total")


def test_json_round_trip(tmp_path):
    config = config_lib.load(tiny.REPO / "configs" / "quickstart.py", ["data.batch_size=8", "eval.ks=(1, 5)"])
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.load(tmp_path / "config.json") == config
    assert config.data.batch_size == 8 and config.eval.ks == (1, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_sise=3", "batch_size"),
        ("modle.dtype=float32", "model"),
        ("data.datasets.copair.wieght=3", "weight"),
        ("data.batch_size=many", "type int"),
        ("data.batch_size=2.5", "type int"),
        ("data.batch_size", "no value"),
        ("seed.x=1", "single value"),
        ("eval.ks=3", "sequence"),
        ("eval.ks=(0,)", "at least 1"),
        ("data.batch_size=0", "at least 1"),
        ("data.field_dropout=1.5", "at least 0 and at most 1"),
        ("data.frame_budget=-1", "at least 0"),
        ("data.datasets.copair.weight=-1", "at least 0"),
        ("objective.temperature=0", "above 0"),
        ("optimizer.b1=1", "below 1"),
        ("optimizer.peak=1e400", "finite"),
        ("model.dtype=int32", "float32, bfloat16"),
        ("data.sampling=sorted", "specialized, mixed"),
        ("eval.tasks.i2i.corpus=all", "items, targets"),
        ("data.datasets.copiar.weight=2", "copair"),
        ("stages.1.steps=x", "type int"),
        ("train.steps=1e400", "takes a value of type int, not inf"),
        (f"train.steps={10**30}", "is 10+; write a whole number of at most 2,147,483,647"),
        (f"optimizer.peak={10**400}", "write a finite number"),
        ("train.steps=" + "9" * 5_000, "takes a value of type int"),
        ("train.steps=" + "x" * 1_000_000, r"not 'xxx.*\.\.\. \(1,000,002 characters\)"),
        ("model.dtype=" + "x" * 1_000_000, "choose one of"),
        ("train.steps=" + "[" * 100 + "]" * 100, "takes a value of type int"),
        ("train.steps=" + "(" * 10_000, "takes a value of type int"),
        ("train.steps=" + "-" * 100_000 + "1", "takes a value of type int"),
        ("eval.ks=" + "[" * 50 + "]" * 50, "takes a value of type int"),
        ("data.datasets={[]: 1}", "takes a mapping"),
        ("x" * 100_000 + "=1", "There is no setting"),
        ("data." * 10_000 + "x=1", "There is no setting"),
    ],
)
def test_mistakes_on_the_command_line(override, message):
    with pytest.raises(SailError, match=message) as error:
        config_lib.load(tiny.REPO / "configs" / "quickstart.py", [override])
    assert len(str(error.value)) < 1_000 and "\n" not in str(error.value)


def test_a_word_for_a_part_of_what_another_word_set():
    with pytest.raises(SailError, match="no setting config.data.batch_size: config.data is a single value, 3"):
        config_lib.load(tiny.REPO / "configs" / "quickstart.py", ["data=3", "data.batch_size=4"])


def test_mistakes_in_a_config_file(tmp_path):
    path = tmp_path / "wrong.py"
    head = "from sail_jax.config import default_config\ndef get_config():\n    config = default_config()\n"
    path.write_text(head + "    config.model.llm.widht = 3\n    return config\n")
    with pytest.raises(SailError, match="width"):
        config_lib.load(path)
    path.write_text(head + '    config.data.datasets = {"a": {"tabel": "x"}}\n    return config\n')
    with pytest.raises(SailError, match="table"):
        config_lib.load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.py", "def get_config(:", r"x\.py.*SyntaxError.*line 1"),
        ("x.py", "def get_config():\n    return 1 / 0", r"x\.py, line 2: ZeroDivisionError"),
        ("x.py", "import no_such_module", "line 1: ModuleNotFoundError"),
        ("x.py", "a = 1", "no get_config"),
        ("x.py", "def get_config():\n    return None", "no get_config"),
        ("x.json", '{"seed":', "not valid JSON"),
        ("x.json", "[" * 100_000, "not valid JSON"),
        ("x.json", "[]", "config is a group of settings, not"),
        ("x.json", '{"data": 3}', "config.data is a group of settings, not 3"),
        ("x.json", '{"data": {"dir": 3}}', "config.data.dir takes a value of type str"),
        ("x.json", '{"seed": 1' + "0" * 5_000 + "}", "not valid JSON"),
        ("x.yaml", "seed: 1", "not a config file"),
    ],
)
def test_config_files_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SailError, match=message):
        config_lib.load(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.llm.head_dim=7", "head_dim"),
        ("model.vit.image_size=7", "holds no patch"),
        ("model.vit.image_mean=(0.5,)", "per channel"),
    ],
)
def test_sizes_that_do_not_fit_together(override, message):
    config = config_lib.load(tiny.REPO / "configs" / "quickstart.py", [override])
    with pytest.raises(SailError, match=message):
        init_shapes(config.model)


def test_the_config_in_the_documentation_builds(tmp_path):
    (block,) = re.findall(
        r"```python\n(from sail_jax.config import preset.*?)```",
        (tiny.REPO / "docs" / "training.md").read_text(),
        re.DOTALL,
    )
    (tmp_path / "mine.py").write_text(block)
    config = config_lib.load(tmp_path / "mine.py")
    assert [stage.name for stage in plan(config, tmp_path)] == ["1_broad", "2_hard"]
    assert make_objective(config).recipe([1]).losses == ("nce", "cosent")


def test_a_missing_config_file_names_the_nearest():
    with pytest.raises(SailError, match=r"quickstart\.py"):
        config_lib.load(tiny.REPO / "configs" / "quikstart.py")


def test_every_setting_has_a_meaning():
    rows = meanings(config_lib.Config)
    assert len({key for key, *_ in rows}) == len(rows) > 100
    assert all(meaning for *_, meaning in rows)


# What changes no result, or by rounding alone; all else is what a run was started with.
MAY_CHANGE = (
    "balancing.*",
    "data.datasets.NAME.materialized",
    "data.dir",
    "data.encoding_cache",
    "data.encoding_cache_gb",
    "data.max_bad_records",
    "data.prefetch",
    "data.workers",
    "eval.*",
    "ingest.*",
    "logs.engine.*",
    "mesh.*",
    "model.media_chunk",
    "model.perceiver.attention_block",
    "model.remat",
    "objective.score_block",
    "synthetic.*",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.keep_checkpoints",
    "train.skip_nonfinite",
    "train.log_every",
    "train.micro_batches",
    "train.tracker*",
)


def test_which_settings_may_change_when_a_run_is_resumed():
    rows = list(declared(config_lib.Config))
    assert [row.key for row in rows] == [key for key, *_ in meanings(config_lib.Config)]
    for row in rows:
        listed = any(fnmatch.fnmatchcase(row.key, f"config.{pattern}") for pattern in MAY_CHANGE)
        assert row.may_change == listed, row.key


def test_the_list_of_settings_says_which_may_change():
    meaning = {key: meaning for key, *_, meaning in meanings(config_lib.Config)}
    assert meaning["config.eval.tasks.NAME.table"].endswith("(may change when a run is resumed)")
    assert "resumed" not in meaning["config.data.batch_size"]
