"""Progressive stages: the settings of each, their order, and resuming after a kill at any moment."""

import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sail_jax import config as config_lib
from sail_jax.config import total_steps
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.errors import SailError
from sail_jax.models.model import init_params
from sail_jax.objectives.objective import make_objective
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.loop import train
from sail_jax.training.stage_mining import check_mined, mine_for_stage
from sail_jax.training.stages import mined_table, plan
from training_runs import finish, kill_when, start


@pytest.fixture
def staged(settings):
    """Three short stages, most with only text, since compiling the other towers takes long."""
    settings.data.datasets.copair.patterns = ("T->T",)
    settings.data.datasets.search.patterns = ("T->T",)
    settings.train.update(checkpoint_every=2, log_every=1)
    settings.stages = {
        "1_broad": {"steps": 3, "warmup_steps": 1},
        "2_target": {"steps": 3, "weights": {"copair": 1.0}, "warmup_steps": 0, "peak": 5e-4, "floor": 1e-4},
        "3_hard": {"steps": 3, "weights": {"copair": 1.0}, "mine": ("copair",), "hard_negatives": 2, "warmup_steps": 0},
    }
    return settings


def test_each_stage_has_its_own_settings(staged, tmp_path):
    staged.stages["2_target"]["loss_weights"] = {"micl": 0.3}
    first, second, third = plan(config_lib.build(staged), tmp_path)
    assert [(s.name, s.begin, s.end) for s in (first, second, third)] == [
        ("1_broad", 0, 3),
        ("2_target", 3, 6),
        ("3_hard", 6, 9),
    ]
    assert {n: d.weight for n, d in first.config.data.datasets.items()} == {"copair": 2.0, "search": 1.0}
    assert {n: d.weight for n, d in second.config.data.datasets.items()} == {"copair": 1.0, "search": 0.0}
    micl = [make_objective(stage.config).sets[0].weights["micl"] for stage in (first, second)]
    assert micl == [0.0, 0.3]
    assert (second.config.optimizer.peak, second.config.optimizer.floor) == (5e-4, 1e-4)
    assert first.config.optimizer.peak == third.config.optimizer.peak == staged.optimizer.peak
    copair = third.config.data.datasets["copair"]
    assert third.mine == ("copair",) and copair.hard_negatives == 2
    assert copair.negatives == str(tmp_path / "3_hard" / "copair.parquet")
    assert total_steps(config_lib.build(staged)) == 9


def test_a_stage_sets_loss_weights_for_all_its_sets(staged, tmp_path):
    staged.data.datasets.copair.loss_weights = {"micl": 1.0, "nce": 2.0}
    staged.stages["2_target"]["loss_weights"] = {"micl": 0.0}
    stages = plan(config_lib.build(staged), tmp_path)
    weights = [make_objective(stage.config).sets[0].weights for stage in stages[:2]]
    assert [(w["micl"], w["nce"]) for w in weights] == [(1.0, 2.0), (0.0, 2.0)]


def test_a_set_continues_where_the_previous_stage_left_it(staged, tmp_path):
    staged.stages["2_target"]["weights"] = {"copair": 1.0, "search": 3.0}
    staged.data.datasets.search.weight = 1.0
    seen = {0: [], 1: []}
    for stage in plan(config_lib.build(staged), tmp_path)[:2]:
        source = BatchSource(stage.config, HostShare(0, 16, 1), begin=stage.begin, drawn=stage.drawn)
        for step in range(stage.begin, stage.end):
            for dataset, example in source.examples(step):
                seen[dataset].append(example)
    assert all(examples == list(range(len(examples))) for examples in seen.values())
    assert len(seen[0]) + len(seen[1]) == 6 * 16 and min(map(len, seen.values())) > 0


def test_stages_run_in_the_order_of_their_numbers(staged, tmp_path):
    staged.stages = {name: {"steps": 1} for name in ("10", "2", "1", "2b")}
    assert [stage.name for stage in plan(config_lib.build(staged), tmp_path)] == ["1", "2", "2b", "10"]


@pytest.mark.slow
def test_negatives_of_another_model_are_mined_again_and_missing_ones_are_an_error(staged, tmp_path, one_device):
    staged.stages = {"1": {"steps": 2, "mine": ("copair",), "weights": {"copair": 1.0}, "hard_negatives": 1}}
    staged.optimizer.warmup_steps = 0
    config, run = config_lib.build(staged), RunDirectory(tmp_path)
    (stage,) = plan(config, run.mined)
    params, mesh = {"model": init_params(config.model, 0)}, make_mesh(config.mesh)
    table = mined_table(run.mined / "1", "copair")
    mine_for_stage(stage, params, run, mesh)
    first = table.stat().st_mtime_ns
    mine_for_stage(stage, params, run, mesh)
    assert table.stat().st_mtime_ns == first
    mine_for_stage(stage, jax.tree.map(lambda x: x * 1.5, params), run, mesh)
    assert table.stat().st_mtime_ns > first
    check_mined(stage, run)
    table.unlink()
    with pytest.raises(SailError, match="begin the stage, and its mining, again"):
        check_mined(stage, run)


def test_all_in_one_draws_what_the_stages_would_have_drawn(staged, tmp_path):
    staged.train.progressive = False
    (only,) = plan(config_lib.build(staged), tmp_path)
    assert (only.begin, only.end, only.mine) == (0, 9, ())
    weights = {name: dataset.weight for name, dataset in only.config.data.datasets.items()}
    assert weights == {"copair": pytest.approx(3 * 2 / 3 + 3 + 3), "search": pytest.approx(3 / 3)}


def test_a_run_without_stages_is_one(settings, tmp_path):
    config = config_lib.build(settings)
    (only,) = plan(config, tmp_path)
    assert only.config == config and (only.name, only.begin, only.end) == ("", 0, 6)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"weights": {"copiar": 1.0}}, "copair"),
        ({"mine": ("serach",)}, "search"),
        ({"weights": {"copair": 0.0}}, "above 0"),
        ({"weights": {"copair": 1.0}, "mine": ("search",)}, "never draws"),
        ({"steps": 1, "warmup_steps": 5}, r"config\.stages\.1\.warmup_steps.*stages\.1\.steps"),
        ({"peak": 1e-9}, r"config\.stages\.1\.floor"),
        ({"mine": ("copair",), "hard_negatives": 99}, "per_query"),
        ({"loss_weights": {"cosnet": 1.0}}, "cosent"),
    ],
)
def test_wrong_stages(staged, tmp_path, stage, message):
    staged.stages = {"1": stage}
    with pytest.raises(SailError, match=message):
        train(config_lib.build(staged), tmp_path)


def test_a_late_stage_that_cannot_run_is_refused_at_the_start(staged, tmp_path):
    staged.data.datasets.clean = {"table": "tables/clean.parquet"}
    staged.stages["1_broad"]["weights"] = {"copair": 1.0}
    staged.stages["3_hard"].update(weights={"clean": 1.0}, mine=("clean",))
    with pytest.raises(SailError, match=r"no pair table .*clean\.parquet"):
        train(config_lib.build(staged), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def config_file(staged, tmp_path):
    staged.data.datasets.search.patterns = ("T->V",)  # with media
    staged.optimizer.freeze = ("^audio/",)
    path = tmp_path / "config.json"
    config_lib.save(config_lib.build(staged), path)
    return path


@pytest.mark.slow
def test_a_staged_run_that_is_killed_anywhere_ends_with_the_same_bits(config_file, tmp_path):
    """Killed at any step of the first two stages, and again while hard negatives are mined for the third."""
    finish(start(config_file, tmp_path / "whole", tmp_path / "whole.npz"))
    workdir, out = tmp_path / "killed", tmp_path / "killed.npz"
    run = RunDirectory(workdir)
    moment = random.SystemRandom().randint(1, 5)  # the message below says which
    kill_when(start(config_file, workdir, out), lambda: len(read_training_log(run)) >= moment)
    reached = read_training_log(run)[-1]["step"]
    saved = sorted(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit())
    assert reached < 9
    kill_when(start(config_file, workdir, out), lambda: run.mined.is_dir())
    assert not out.exists()
    finish(start(config_file, workdir, out))
    with np.load(tmp_path / "whole.npz") as left, np.load(out) as right:
        assert left.files == right.files
        for name in left.files:
            np.testing.assert_array_equal(
                left[name], right[name], err_msg=f"killed at step {reached}, checkpoints {saved}"
            )
    whole = RunDirectory(tmp_path / "whole")
    logs = [read_training_log(r) for r in (whole, run)]
    assert [line["step"] for line in logs[1]] == list(range(1, 10))
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    _check_learning_rates([line["learning_rate"] for line in logs[0]])
    _check_checkpoints_and_negatives(whole)


def _check_learning_rates(rates):
    peak, floor = 2e-3, 2e-4
    np.testing.assert_allclose(rates[:2], [0, peak], rtol=1e-6)  # a warm-up of one step
    np.testing.assert_allclose(rates[3], 5e-4, rtol=1e-6)  # the second stage begins at its own peak
    np.testing.assert_allclose(rates[6], peak, rtol=1e-6)
    assert all(0.999 * floor <= rate <= 1.001 * peak for rate in rates[1:3] + rates[6:])
    assert all(rate <= 5.001e-4 for rate in rates[3:6])


def _check_checkpoints_and_negatives(run):
    kept = {int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit()}
    assert {3, 6, 9} <= kept  # the end of each stage stays
    table = NegativesTable.open(mined_table(run.mined / "3_hard", "copair"))
    assert len(table) > 10


@pytest.mark.slow
def test_a_stage_keeps_the_parameters_and_resets_the_moments(staged, tmp_path, one_device):
    staged.stages = {name: staged.stages[name] for name in ("1_broad", "2_target")}
    staged.stages["1_broad"]["weights"] = {"copair": 1.0}  # one data set: one step to compile
    staged.stages["2_target"].update(steps=1, peak=1e-30, floor=1e-30)  # moves nothing
    result = train(config_lib.build(staged), tmp_path)
    checkpoints = Checkpoints(RunDirectory(tmp_path), saves=False)
    abstract = jax.eval_shape(lambda: result.state.params["model"])
    before = checkpoints._manager.restore(3, args=_restore_model(abstract))["model"]
    checkpoints.close()
    for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(result.state.params["model"]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    counts = [leaf for leaf in jax.tree.leaves(result.state.opt_state) if leaf.ndim == 0]
    assert [int(count) for count in counts] == [1] * len(counts) and counts


def _restore_model(abstract):
    return ocp.args.Composite(model=ocp.args.StandardRestore(abstract))
