"""The checks and verdicts of experiments.reproduce on made-up configs and figures, and one claim by real runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import ranking
from experiments.reproduce import arms, bases, fairness, launch, page, ranked, records, verdicts
from experiments.reproduce.__main__ import main
from experiments.reproduce.claim import AbsentError
from experiments.reproduce.claims import CLAIMS
from experiments.reproduce.prepare import Preparation
from experiments.reproduce.run import Study, build_arms, declarations, prepare_all, row_of
from experiments.reproduce.same_runs import take_over
from sail_jax import config as config_lib
from sail_jax.config.schema import override, to_dict
from sail_jax.errors import SailError
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.models.describe import parameter_table
from sail_jax.sweeps import SweepFolder, expand
from sail_jax.sweeps.begin import write_sweep
from sail_jax.sweeps.check import Checked
from sail_jax.sweeps.folder import Record, Status
from sail_jax.sweeps.local import run_local

CPU = bases.SCALES["cpu"]
NAMES = (
    *("fusion", "bidirectional", "lora", "prompts", "cosent", "patterns", "dropout", "data", "stages"),
    *("hard_negatives", "balancing", "specialization", "sequences", "ids", "semantic_ids"),
)


def own(name, tmp_path, scale=CPU):
    return arms.own_arms(CLAIMS[name], scale, tmp_path / "prepared", tmp_path / "data")


def changed(config, words):
    return config_lib.build(override(config_lib.Config, to_dict(config), words))


def both(name, tmp_path, world):
    """The configs of both arms of a claim, on data that are there."""
    found = own(name, tmp_path)
    if found.base.data.weights:
        file = Path(found.base.data.weights)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"weights": dict.fromkeys(found.base.data.datasets, 0.2) | {"pairs": 0.5}}))
    here = [f"data.dir={world}", "prompt.tokenizer=tokenizer", "init_from={}"]
    return changed(found.base, here), changed(found.base, [*here, *found.changes])


def group(name, values, figure="a/recall@10"):
    return SeedGroup(name, {seed: {figure: value} for seed, value in enumerate(values)})


def test_every_claim_has_its_condition_and_its_figures(tmp_path):
    assert sorted(CLAIMS) == sorted(NAMES)
    for name in NAMES:
        for scale in bases.SCALES.values():
            found = own(name, tmp_path, scale)
            assert found.changes or CLAIMS[name].ranking, name
    for config in (found.base for found in (own("fusion", tmp_path, scale) for scale in bases.SCALES.values())):
        parameter_table(config.model)
        parameter_table(dataclasses.replace(config.model, kind="dual_tower"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "semantic_ids"])
def test_the_arms_of_a_claim_differ_in_its_ingredient_alone(name, tmp_path, world):
    with_it, without = both(name, tmp_path, world)
    fairness.check_arms(CLAIMS[name], with_it, without)


@pytest.mark.parametrize(
    ("name", "word", "why"),
    [
        ("bidirectional", "train.steps=7", "differ in train.steps, and not only in model.llm.causal"),
        ("bidirectional", "data.batch_size=8", "differ in data.batch_size"),
        ("bidirectional", "model.llm.causal=False", "the two arms are the same config"),
        (
            "prompts",
            "prompt.unified=Say it.",
            "in their tokens, not only in the ingredient: .*instructions of equal length",
        ),
        ("stages", "stages.1_broad.weights={'broad': 1.0, 'clean': 9.0}", "in their data.* draw every table as often"),
    ],
)
def test_unfair_arms_are_refused(name, word, why, tmp_path, world):
    with_it, without = both(name, tmp_path, world)
    with pytest.raises(SailError, match=why):
        fairness.check_arms(CLAIMS[name], with_it, changed(without, [word]))


def test_a_schedule_that_differs_is_refused_though_it_is_the_ingredient(tmp_path, world):
    claim = dataclasses.replace(CLAIMS["stages"], ingredient=("*",))
    with_it, without = both("stages", tmp_path, world)
    with pytest.raises(SailError, match="in their schedule"):
        fairness.check_arms(claim, with_it, changed(without, ["train.progressive=False"]))
    with pytest.raises(SailError, match="in their steps"):
        fairness.check_arms(claim, with_it, changed(without, ["stages.2_clean.steps=101"]))


def test_a_figure_that_no_task_computes_is_refused(tmp_path):
    config = own("cosent", tmp_path).base
    assert not arms.lacking(config, "score/graded/spearman")
    assert "add 'bijective' to eval.tasks.score.metrics" in arms.lacking(config, "score/bijective")
    assert "add 7 to eval.ks" in arms.lacking(config, "score/recall@7")
    assert "add 'V' to eval.tasks.score.views" in arms.lacking(config, "score/V/recall@10")
    assert "has no 'pairs'" in arms.lacking(config, "pairs/recall@10")
    with pytest.raises(SailError, match="cosent asks for pairs/recall@10, which is not computed"):
        arms.check_figures(CLAIMS["cosent"], config, ("pairs/recall@10",))


def test_a_config_of_the_user_is_tested_on_the_ingredients_that_it_has(settings):
    config = config_lib.build(settings)
    found = arms.users_arms(CLAIMS["bidirectional"], config)
    assert (found.changes, found.figure) == (("model.llm.causal=True",), "i2i/recall@10")
    with pytest.raises(AbsentError, match="data.weights"):
        arms.users_arms(CLAIMS["balancing"], config)
    with pytest.raises(AbsentError, match="random weights"):
        arms.users_arms(CLAIMS["lora"], config)
    settings.data.datasets.search.loss_weights = {"cosent": 1.0}
    with pytest.raises(SailError, match="graded/spearman, which no task has: add 'graded' to eval.tasks.i2i.metrics"):
        arms.users_arms(CLAIMS["cosent"], config_lib.build(settings))


def test_the_control_of_a_sequence_stage_trains_on_content_for_as_long(tmp_path):
    found = own("sequences", tmp_path)
    assert found.changes == ("stages.1_sequences.weights={'copair': 1.0}",)
    alone = changed(found.base, ["stages.1_sequences.weights={'seq_collab_multi': 1.0}"])
    with pytest.raises(AbsentError, match="stage 1_sequences draws nothing else"):
        arms.users_arms(CLAIMS["sequences"], alone)


@pytest.mark.parametrize(
    ("treatment", "verdict"),
    [
        ((0.52, 0.525, 0.515), verdicts.CONFIRMED),
        ((0.475, 0.48, 0.485), verdicts.CONTRADICTED),
        ((0.45, 0.56, 0.53), verdicts.UNDECIDED),
    ],
)
def test_the_verdict_is_that_of_the_paired_test(treatment, verdict):
    row = verdicts.judge(CLAIMS["fusion"], "a/recall@10", group("with", treatment), group("without", [0.5] * 3), 3)
    assert row.verdict == verdict
    assert (row.p < 0.05) == (verdict != verdicts.UNDECIDED)


def test_a_figure_of_which_less_is_better_turns_the_verdict():
    figure = "a/separability/overlap"
    found = [group("with", (0.2, 0.21, 0.19), figure), group("without", (0.3, 0.31, 0.32), figure)]
    assert verdicts.judge(CLAIMS["fusion"], figure, *found, 3).verdict == verdicts.CONFIRMED


def test_a_seed_that_lacks_the_figure_leaves_the_row_without_a_verdict():
    row = verdicts.judge(CLAIMS["fusion"], "a/recall@10", group("with", (0.5, 0.6)), group("without", (0.5,)), 2)
    assert (row.verdict, row.reason) == (verdicts.NOT_RUN, "only 1 of 2 seeds have the figure a/recall@10 in both arms")


def test_holm_asks_more_of_several_claims():
    def row(p):
        found = verdicts.judge(CLAIMS["fusion"], "a/recall@10", group("w", (0.5, 0.6)), group("o", (0.4, 0.5)), 2)
        return dataclasses.replace(found, p=p)

    # 0.01 < 0.05 / 3, 0.024 < 0.05 / 2, 0.06 > 0.05.
    assert [found.after_holm for found in verdicts.with_holm([row(0.06), row(0.024), row(0.01)])] == [False, True, True]
    # The second smallest fails at 0.05 / 2, and so does the one after it.
    assert [found.after_holm for found in verdicts.with_holm([row(0.04), row(0.03), row(0.01)])] == [False, False, True]


def test_what_was_written_down_is_not_changed_after(tmp_path):
    found = own("stages", tmp_path)

    def declaration(figure="pairs/recall@10", seeds=5):
        return {"stages": records.declaration(found.claim, found.base, found.changes, figure, seeds, tmp_path)}

    records.declare(tmp_path / "out", declaration())
    records.declare(tmp_path / "out", declaration())
    written = records.declared(tmp_path / "out")["stages"]
    assert written["digest"] == records.digest(written["declaration"])
    assert written["declaration"]["config"]["data"]["dir"] == "OUTPUT/data"
    with pytest.raises(SailError, match="figure was 'pairs/recall@10', is 'pairs/recall@50'.*name another --workdir"):
        records.declare(tmp_path / "out", declaration("pairs/recall@50"))
    with pytest.raises(SailError, match="seeds was 5, is 6"):
        records.declare(tmp_path / "out", declaration(seeds=6))


def test_the_page_has_every_claim_with_its_verdict_or_its_reason(tmp_path):
    found = [group("own instructions", (0.52, 0.525, 0.515), "looks/recall@50")]
    found.append(group("one instruction", (0.5, 0.5, 0.5), "looks/recall@50"))
    rows = [
        verdicts.judge(CLAIMS["prompts"], "looks/recall@50", *found, 3),
        verdicts.Row(
            CLAIMS["cosent"], CLAIMS["cosent"].figure, verdicts.NOT_RUN, "with_COSENT,seed=1: failed: no disk"
        ),
    ]
    origins = {"prompts": {"declared": "abc", "machine": {"cores": 2}}}
    path = page.write_page(tmp_path, verdicts.with_holm(rows), origins, {"scale": "cpu"})
    text = path.read_text()
    assert "failed: no disk" in text and "1 confirmed, 1 not run" in text and text.count("<svg") == 1
    line = next(line for line in (tmp_path / "reproduction.md").read_text().splitlines() if "prompts" in line)
    assert "| 50.0 % | 52.0 % | +2.0 | +0.8 to +3.2 | confirmed, also after Holm |" in line
    figures = json.loads((tmp_path / "reproduction.json").read_text())["claims"]
    assert figures["prompts"]["declared"] == "abc" and figures["cosent"]["reason"].endswith("no disk")


def run_elsewhere(folder, claim="prompts", treatment=(0.52, 0.515, 0.515), **settings):
    """Writes the page of a folder in which one claim was run; returns its JSON."""
    figures = (CLAIMS[claim].figure, CLAIMS[claim].shown[0])
    found = [
        SeedGroup(name, {seed: dict.fromkeys(figures, value) for seed, value in enumerate(values)}, device_seconds=60.0)
        for name, values in ((CLAIMS[claim].treatment, treatment), (CLAIMS[claim].control, (0.5, 0.49, 0.5)))
    ]
    rows = verdicts.with_holm([verdicts.judge(CLAIMS[claim], figures[0], *found, 3)])
    folder.mkdir()
    origins = {claim: {"declared": "abc", "machine": {"cores": 64}}}
    page.write_page(folder, rows, origins, {"base": "generated worlds", "scale": "cpu"} | settings)
    return folder / "reproduction.json"


def test_claims_of_other_folders_are_put_on_one_page(tmp_path, capsys):
    one, other = run_elsewhere(tmp_path / "a"), run_elsewhere(tmp_path / "b", "cosent", (0.5, 0.48, 0.51))
    words = ["--earlier", str(one), "--earlier", str(other), "--workdir", str(tmp_path / "out"), "--report"]
    main(words)
    assert "1 confirmed, 1 undecided, 13 not run" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results" / "reproduction.json").read_text())["claims"]
    for claim, file in (("prompts", one), ("cosent", other)):
        before = json.loads(file.read_text())["claims"][claim]
        changed = {"after_holm"} & {key for key in before if before[key] != found[claim][key]}
        assert found[claim] == before | {key: found[claim][key] for key in changed}
    assert found["prompts"]["machine"] == {"cores": 64} and found["prompts"]["device_seconds"] == {
        CLAIMS["prompts"].treatment: 60.0,
        CLAIMS["prompts"].control: 60.0,
    }
    # The page written from a page is the same again.
    again = tmp_path / "out" / "results" / "reproduction.json"
    main(["--earlier", str(again), "--workdir", str(tmp_path / "again"), "--report"])
    assert (tmp_path / "again" / "results" / "reproduction.json").read_bytes() == again.read_bytes()


def test_claims_of_other_folders_that_do_not_fit_are_refused(tmp_path):
    good, gpu = run_elsewhere(tmp_path / "good"), run_elsewhere(tmp_path / "gpu", scale="gpu")
    whole = json.loads(good.read_text())
    (tmp_path / "cut.json").write_text(good.read_text()[:50])
    (tmp_path / "list.json").write_text("[]")
    whole["claims"]["prompts"]["arms"] = {"x": {}, "y": {}}
    (tmp_path / "arms.json").write_text(json.dumps(whole))
    whole["claims"]["fussion"] = whole["claims"].pop("prompts")
    (tmp_path / "unknown.json").write_text(json.dumps(whole))
    whole["claims"] = {"prompts": {"arms": {}, "figure": "x"}}
    (tmp_path / "old.json").write_text(json.dumps(whole))
    for files, why in (
        ((gpu,), "claims of scale 'gpu', and this page is of 'cpu'"),
        ((good, good), "has the claim prompts, as a file before it"),
        (("cut.json",), "cut.json cannot be read"),
        (("none.json",), "none.json cannot be read"),
        (("list.json",), 'has no "claims"'),
        (("arms.json",), "its arms are x and y"),
        (("unknown.json",), "the claim 'fussion'"),
        (("old.json",), "is of another version|its arms are"),
    ):
        given = [word for file in files for word in ("--earlier", str(tmp_path / file))]
        with pytest.raises(SystemExit, match=why):
            main([*given, "--workdir", str(tmp_path / "out"), "--report"])
    assert not (tmp_path / "out").exists()


def test_one_seed_and_unknown_claims_are_refused(tmp_path, capsys):
    for words, why in (
        (["--seeds", "1"], "--seeds is 1; an interval needs at least 2"),
        (["fussion"], "There is no claim 'fussion'"),
        (["--config.seed=1"], "there is no --config"),
    ):
        with pytest.raises(SystemExit, match=why):
            main([*words, "--workdir", str(tmp_path), "--dry-run"])


def test_a_dry_run_counts_members_and_writes_nothing(tmp_path, capsys):
    main(["hard_negatives", "stages", "--workdir", str(tmp_path), "--dry-run", "--seeds", "3"])
    said = capsys.readouterr().out
    assert "hard_negatives: 6 members, 900 steps" in said  # the control takes over the first stage of 150 steps
    assert "stages: 6 members, 1350 steps" in said and "In all 12 members and 2250 steps." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_claim_is_run_from_the_world_to_the_page(world, tmp_path, settings, monkeypatch, capsys):
    """Both arms of a user's config by the real sweep; a second call with other steps is refused.

    One member is trained and evaluated; the others are given its run, so that nothing can differ.
    """

    def run_first(folder, names, **settings):
        run_local(folder, names[:1], **settings)
        for name in names[1:]:
            shutil.copytree(folder.run(names[0]).path, folder.run(name).path)
            folder.write_status(name, folder.status(names[0]))

    monkeypatch.setattr(launch, "run_local", run_first)
    settings.train.update(steps=2, checkpoint_every=2)
    settings.optimizer.warmup_steps = 0
    settings.eval.update(tfidf=False, untrained=False, widths=(32,))
    settings.eval.tasks = {"i2i": settings.eval.tasks["i2i"].to_dict() | {"views": (), "metrics": ("recall",)}}
    settings.data.batch_size = 8
    config = tmp_path / "mine.json"
    config_lib.save(config_lib.build(settings), config)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    words = ["bidirectional", "balancing", "--config", str(config), "--seeds", "2", "--workdir", str(tmp_path / "out")]
    main([*words, "--jobs", "1"])
    said = capsys.readouterr().out
    assert "balancing: does not apply: it has no balanced weights (data.weights)" in said
    found = json.loads((tmp_path / "out" / "results" / "reproduction.json").read_text())["claims"]["bidirectional"]
    assert (found["verdict"], found["difference"], found["seeds"]) == ("undecided", 0.0, 2)
    assert set(found["arms"]["causal attention"][found["figure"]]) == {"0", "1"}
    with pytest.raises(SystemExit, match=r"and says otherwise now: config.train.steps was 2, is 3"):
        main([*words, "--config.train.steps=3"])


def test_a_preparation_that_fails_leaves_its_claim_not_run(tmp_path, monkeypatch):
    def call(*words):
        if words[0] == "balance":
            raise SailError("balance failed: no disk")

    monkeypatch.setattr("experiments.reproduce.prepare.call", call)
    study = Study((CLAIMS["stages"], CLAIMS["balancing"]), tmp_path, 2, "cpu", None)
    (row,) = prepare_all(study, build_arms(study)[0])
    assert (row.claim.name, row.verdict, row.reason) == ("balancing", "not run", "balance failed: no disk")
    assert row_of(study, CLAIMS["stages"]).reason == "not started"
    records.declare(tmp_path, declarations(study, build_arms(study)[0]))
    assert row_of(study, CLAIMS["stages"]).reason == "not started"  # nor is what was declared alone


def test_ranking_models_are_compared_on_other_users_by_seed(tmp_path, monkeypatch):
    rows, claim = 400, CLAIMS["semantic_ids"]
    user, label = np.arange(rows) % 20, np.arange(rows) % 3 == 0
    made = ranking.Impressions(user, user, np.zeros((rows, 1)), np.zeros((rows, 2)), label.astype(np.float32))
    tested = []

    def train_and_score(train, test, items, tables, seed, name):
        tested.append((seed, set(test.user.tolist())))
        return test.label if tables else np.zeros(len(test.label))

    monkeypatch.setattr(ranking, "read_impressions", lambda config, source: (made, made, {}))
    monkeypatch.setattr(ranking, "read_vectors", lambda folder, items: None)
    monkeypatch.setattr(ranking, "train_and_score", train_and_score)
    ranked.rank(claim, None, tmp_path, tmp_path / "out", 2)
    with pytest.raises(SailError, match="failed: FileNotFoundError.*ids.parquet"):
        ranked.read_ranked(claim, tmp_path / "out", 2)
    monkeypatch.setattr(ranking, "read_codes", lambda path, items: None)
    ranked.rank(claim, None, tmp_path, tmp_path / "out", 2)
    assert not tested[0][1] & tested[2][1] and tested[0] == tested[1]
    row = verdicts.judge(claim, claim.figure, *ranked.read_ranked(claim, tmp_path / "out", 2), 2)
    # Differences that are all alike have no spread to be tested by.
    assert (row.verdict, row.difference.interval.mean) == ("undecided", 0.5)


def test_members_of_a_cluster_are_submitted_in_the_order_of_their_forks(tmp_path, monkeypatch):
    sent = []

    def submit(folder, names, request, *, jobs, after):
        sent.append((names, request.gpus, request.others, list(after)))
        return [f"{len(sent)}_{place}" for place in range(len(names))]

    monkeypatch.setattr(launch, "submit", submit)
    found = own("hard_negatives", tmp_path)
    file = tmp_path / "base.json"
    config_lib.save(found.base, file)
    sweep, folder = found.sweep(file, 2), SweepFolder(tmp_path / "sweep")
    members = [
        Checked(config_lib.load(file, member.overrides), Record(member, "data", "program")) for member in expand(sweep)
    ]
    write_sweep(folder, sweep, members)
    folder.write_status(members[0].record.member.name, Status("done"))
    request = launch.job_request(["gpus=8", "qos=high"])
    launch.launch(folder, jobs=None, request=request, say=lambda line: None)
    names = [member.record.member.name for member in members]
    # The control of the first seed waits for a member that is done, but whose checkpoint is not there.
    assert sent == [(names[1:3], 8, {"qos": "high"}, []), (names[3:], 8, {"qos": "high"}, ["1_0", "1_1"])]
    for option, why in (("gpus", "write it as NAME=VALUE"), ("gpus=two", "gpus is a whole number")):
        with pytest.raises(SailError, match=why):
            launch.job_request([option])


def test_an_arm_that_another_claim_has_trained_is_taken_over(tmp_path):
    folders = {}
    for name in ("fusion", "bidirectional"):
        found, file = own(name, tmp_path), tmp_path / f"{name}.json"
        config_lib.save(found.base, file)
        sweep, folders[name] = found.sweep(file, 2), SweepFolder(tmp_path / "claims" / name)
        members = [
            Checked(
                config_lib.load(file, [*one.overrides, f"train.tracker_group={name}"]), Record(one, "data", "program")
            )
            for one in expand(sweep)
        ]
        write_sweep(folders[name], sweep, members)
    done, failed = (f"LLM_fusion,seed={seed}" for seed in (0, 1))
    for name, state in ((done, "done"), (failed, "failed")):
        (folders["fusion"].run(name).path / "owners").mkdir(parents=True)
        (folders["fusion"].run(name).path / "metrics.json").write_text(name)
        folders["fusion"].write_status(name, Status(state, device_seconds=7.0))
    others = [folders["fusion"], SweepFolder(tmp_path / "claims" / "lora")]
    taken = take_over(folders["bidirectional"], others)
    assert taken == ["two-way_attention,seed=0"]
    run, status = folders["bidirectional"].run(taken[0]), folders["bidirectional"].status(taken[0])
    assert (run.path / "metrics.json").read_text() == done and not (run.path / "owners").exists()
    assert (status.state, status.device_seconds) == ("done", 7.0)
    assert take_over(folders["bidirectional"], others) == []  # it is done now


def test_worlds_of_both_seeds_are_written_where_claims_look_for_them(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("experiments.reproduce.prepare.call", lambda *words: called.append(words))
    Preparation(tmp_path, CPU, say=lambda line: None).make([CLAIMS["lora"], CLAIMS["balancing"]])
    assert [words[0] for words in called] == [
        *("world", "ingest", "world", "ingest", "train", "export"),
        *("world", "ingest", "train", "balance"),
    ]
    of = {name: config_lib.load(tmp_path / name / "world.json") for name in ("content", "pretrained")}
    assert of["content"].seed != of["pretrained"].seed
    with pytest.raises(SailError, match="was made with another model.llm.width .*name another --workdir"):
        Preparation(tmp_path, bases.SCALES["gpu"], say=lambda line: None).make([CLAIMS["stages"]])
    lora = own("lora", tmp_path / "x").base
    assert lora.init_from["model"].endswith("prepared/pretrained/export")
