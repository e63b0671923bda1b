"""`fit` goes from a folder to a report, and what is finished is not done again."""

import json

import pytest
from test_init import NAMES, picture, write, write_csv, write_recommender

from sail_jax.cli import main, quickstart
from sail_jax.data.tables import PairTable

# What makes the preset small.
SMALL = [
    *("train.steps=2", "train.checkpoint_every=2", "optimizer.warmup_steps=1", "data.batch_size=4"),
    *("model.llm.layers=1", "model.vit.layers=1", "model.audio.depths=(1,)", "model.audio.heads=(2,)"),
    *("ingest.tokenizer_vocab=400", "eval.untrained=False", "eval.batch_size=8", "eval.widths=(96,)"),
]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES[:24]):
        write(tmp_path / "photos" / f"{name.replace(' ', '_')}.png", picture(number))
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_from_a_folder_to_a_report(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["fit", "photos", "--preset", "tiny", *(f"--config.{setting}" for setting in SMALL)]
    assert main(command) == 0
    said = capsys.readouterr().out
    run = tmp_path / "runs" / "photos"
    assert [part in said for part in ("1/4", "2/4", "3/4", "4/4")] == [True] * 4
    assert f"report: {run / 'report.html'}" in said and "Next: python -m sail_jax embed --workdir runs/photos" in said
    assert (run / "config.py").is_file() and (run / "config_items.jsonl").is_file() and (run / "report.html").is_file()
    assert any(
        key.startswith("text_to_image/recall@") for key in json.loads((run / "metrics.json").read_text())["trained"]
    )

    written = {path: path.stat().st_mtime_ns for path in (run / "config.py", run / "report.html")}
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "is already done" in said and "already at step 2" in said and "already evaluated" in said
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert main([*command, "--config.eval.ks=(1, 2)"]) == 0
    assert "already evaluated" not in capsys.readouterr().out, "other settings are evaluated anew"


def test_pairs_of_a_log_are_built_once(tmp_path, monkeypatch, capsys):
    write_recommender(tmp_path / "films")
    for step in ("train_and_print", "evaluate_and_print"):
        monkeypatch.setattr(quickstart, step, lambda *_: None)
    command = ["fit", str(tmp_path / "films"), "--workdir", str(tmp_path / "run"), "--config.ingest.tokenizer_vocab=0"]
    assert main(command) == 0
    table = tmp_path / "run" / "data" / "tables" / "copair.parquet"
    assert len(PairTable.open(table, "train")) > 50
    written = table.stat().st_mtime_ns
    assert main(command) == 0
    assert table.stat().st_mtime_ns == written


def trained_on_a_shop(tmp_path, monkeypatch, names, seen):
    """Fits a shop of pictures with these names and this log; returns the config that would be trained."""
    for number in range(len(names)):
        write(tmp_path / "shop" / "photos" / f"p{number}.png", picture(number))
    products = [{"sku": f"p{number}", "name": name} for number, name in enumerate(names)]
    write_csv(tmp_path / "shop" / "products.csv", products)
    write_csv(tmp_path / "shop" / "events.csv", seen)
    trained = []
    monkeypatch.setattr(quickstart, "train_and_print", lambda config, _: trained.append(config))
    monkeypatch.setattr(quickstart, "evaluate_and_print", lambda *_: None)
    command = ["fit", str(tmp_path / "shop"), "--workdir", str(tmp_path / "run"), "--config.ingest.tokenizer_vocab=0"]
    assert main(command) == 0
    return trained[0]


@pytest.mark.parametrize(("twos", "batch"), [(6, None), (10, 8), (24, 16)])
def test_a_small_log_gets_a_batch_that_it_fills(tmp_path, monkeypatch, capsys, twos, batch):
    """A pair for every two items that three users see, a few of which are drawn for the test."""
    seen = [
        {"user_id": f"u{at}-{user}", "sku": f"p{2 * at + n}", "liked": 1, "timestamp": 1_600_000_000 + 100 * at + n}
        for at in range(twos)
        for user in range(3)
        for n in range(2)
    ]
    data = trained_on_a_shop(tmp_path, monkeypatch, [f"{NAMES[n % 24]} {n}" for n in range(80)], seen).data
    said = " ".join(capsys.readouterr().out.split())
    assert f"copair: {twos} candidates" in said
    rows = len(PairTable.open(tmp_path / "run/data/tables/copair.parquet", "train"))
    if batch is None:
        assert f"config.data.datasets.copair is left out: tables/copair.parquet has {rows} rows" in said
        assert "copair" not in data.datasets and data.batch_size == 32
    else:
        assert f"config.data.batch_size is {batch}, not 32: the data set copair has {rows} rows to train on." in said
        assert data.batch_size == batch <= rows < 2 * batch


def test_a_table_without_rows_leaves_out_what_reads_it(tmp_path, monkeypatch, capsys):
    """A log of three users says nothing; captions and pictures still teach."""
    seen = [{"user_id": f"u{n % 3}", "sku": f"p{n}", "liked": 1, "timestamp": 1_600_000_000 + n} for n in range(24)]
    trained = trained_on_a_shop(tmp_path, monkeypatch, NAMES[:24], seen)
    said = capsys.readouterr().out
    assert "config.data.datasets.copair is left out: copair.parquet has no row: of 24 rows read" in said
    assert "config.eval.tasks.copair is left out" in said
    assert list(trained.data.datasets) == ["same"] and list(trained.eval.tasks) == ["text_to_image"]


def test_a_run_shorter_than_its_warm_up_is_refused_before_ingestion(folder, tmp_path, capsys):
    assert main(["fit", str(folder), "--workdir", str(tmp_path / "run"), "--config.train.steps=5"]) == 2
    said = capsys.readouterr()
    assert "warmup_steps is 20; it must be less than config.train.steps, 5: set it to 0" in " ".join(said.err.split())
    assert not (tmp_path / "run" / "data").exists()


def test_another_preset_than_that_of_the_workdir(folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    write(workdir / "config.py", 'def get_config():\n    config = preset("small")\n')
    assert main(["fit", str(folder), "--preset", "tiny", "--workdir", str(workdir)]) == 2
    assert "starts from another preset than tiny" in capsys.readouterr().err


def test_a_log_that_leaves_nothing_to_learn(tmp_path, capsys):
    write_csv(tmp_path / "films" / "movies.csv", [{"movieId": n, "title": name} for n, name in enumerate(NAMES[:20])])
    seen = [{"userId": n % 3, "movieId": n, "rating": 5.0, "timestamp": 1_600_000_000 + n} for n in range(20)]
    write_csv(tmp_path / "films" / "ratings.csv", seen)
    assert main(["fit", str(tmp_path / "films"), "--workdir", str(tmp_path / "run")]) == 2
    assert "Nothing is left to train: no data set has rows in its split. Add rows" in capsys.readouterr().err


def test_a_folder_without_sense(tmp_path, capsys):
    write_csv(tmp_path / "numbers" / "x.csv", [{"x": 0.5}, {"x": 1.5}])
    assert main(["fit", str(tmp_path / "numbers"), "--workdir", str(tmp_path / "run")]) == 2
    assert "A table could be" in capsys.readouterr().err
