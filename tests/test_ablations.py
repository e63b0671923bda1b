"""Every ablation changes one line of the main config; its loss traces, and the step of each kind of model."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from experiments.ablations import ABLATIONS, BALANCED, COMMON, markdown, run_path, train_all
from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.errors import SailError
from sail_jax.models.model import make_model
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sweeps import SweepFolder, launch, run
from sail_jax.sweeps.check import Checked
from sail_jax.sweeps.folder import Record, Status
from sail_jax.training.setup import TrainSetup
from sail_jax.training.stages import plan
from sail_jax.training.step import make_loss, make_train_step

WORLD = tiny.REPO / "configs" / "world.py"
# Of these the gradient and the update are traced too, which takes most of the time; the others differ in data and loss.
WHOLE = ("main", "dual tower instead of LLM fusion")


@pytest.mark.parametrize("name", list(ABLATIONS))
@pytest.mark.slow
def test_an_ablation_traces(name, world, tmp_path):
    settings = tiny.experiment(world)
    small = {key: settings[key].to_dict() for key in ("model", "data", "prompt")}
    overrides = [*COMMON, *ABLATIONS[name], f"data.dir={world}", "data.batch_size=8", "objective.matryoshka=(32, 16)"]
    (tmp_path / "weights.json").write_text(
        '{"weights": {"copair": 1, "search": 1, "look_search": 1, "score": 1, "theme": 1}}'
    )
    overrides = [word.replace("balanced.json", str(tmp_path / "weights.json")) for word in overrides]
    values = config_lib.default_config()
    values.update(config_lib.to_dict(config_lib.load(WORLD, overrides)))
    kind, causal = values.model.kind, values.model.llm.causal
    values.model.update(small["model"])
    values.model.update({"kind": kind, "llm": {"causal": causal}})
    values.prompt.max_tokens = small["prompt"]["max_tokens"]
    config = plan(config_lib.build(values), tmp_path)[0].config
    setup = TrainSetup.of(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    source = BatchSource(config, HostShare(0, 8, 1))
    recipe, state = setup.objective.recipe(source.datasets(0)), setup.abstract
    batch = jax.tree.map(jnp.asarray, source[0].arrays)
    if name in WHOLE:
        step = make_train_step(setup)
        after, metrics = jax.eval_shape(lambda s, b: step(s, b, recipe, setup.values), state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    else:
        loss = make_loss(make_model(config.model), setup.objective, config.lora)
        value, _ = jax.eval_shape(lambda p, b: loss(p, b, recipe), state.params, batch)
        assert value.shape == ()


def test_the_sweep_grows_by_what_is_asked_for(tmp_path, monkeypatch):
    def check_members(sweep, members):
        return [Checked(config_lib.load(sweep.base, m.overrides), Record(m, "data", "program")) for m in members]

    ran, folder = [], SweepFolder(tmp_path / "sweep")

    def run_local(folder, names, **_):
        ran.append(list(names))
        for name in names:
            folder.write_status(name, Status("done" if name != "main,seed=2" else "failed", error="no disk"))

    monkeypatch.setattr(run, "check_members", check_members)
    monkeypatch.setattr(launch, "run_local", run_local)
    train_all(folder, ["main", "without COSENT"], 1, tmp_path, 2)
    assert ran == [["main,seed=0", "without_COSENT,seed=0"]]
    train_all(folder, ["main", BALANCED], 2, tmp_path, 2)
    assert len(ran[1]) == 4 and not set(ran[0]) & set(ran[1])
    assert run_path(folder, BALANCED, 1).parent == folder.path / "members"
    with pytest.raises(SailError, match="1 of 3 members failed, such as main,seed=2: no disk"):
        train_all(folder, ["main"], 3, tmp_path, 2)
    with pytest.raises(SailError, match="1 of 1 members"):
        train_all(folder, ["main"], 3, tmp_path, 2)


def test_the_table():
    row = {"mean": 0.5, "standard_error": 0.01, "change": -0.1, "change_standard_error": 0.02}
    table = {
        "main": dict.fromkeys(("i2i/recall@10", "q2i/recall@10"), row),
        "other": dict.fromkeys(("i2i/recall@10", "q2i/recall@10"), row),
    }
    assert "| other | 50.0 ± 1.0 | -10.0 ± 2.0 |" in markdown(table)
