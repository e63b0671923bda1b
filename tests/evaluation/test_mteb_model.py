"""mteb's figures of a run and of its export on a task from local data equal those of our own recall."""

import io

import numpy as np
import pytest
from PIL import Image

import sail_jax
from sail_jax import config as config_lib
from sail_jax.convert.export import export
from sail_jax.data.media.sound import encode_audio
from sail_jax.data.pipeline import open_store
from sail_jax.data.prompts import shown_fields
from sail_jax.errors import SailError
from sail_jax.evaluation.metrics.recall import recall_at_k
from sail_jax.evaluation.retrieval import load_retrieval
from sail_jax.items import TEXT_FIELDS
from sail_jax.vectors.top_k import top_k

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from sail_jax.evaluation.mteb_model import mteb_model  # noqa: E402

CUTS = (1, 5, 10, 20)

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]


def metadata(name):
    return TaskMetadata(
        name=name,
        description="Searches of a small world.",
        dataset={"path": "local", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="recall_at_10",
    )


@pytest.fixture(scope="module")
def searches(run):
    """Returns the searches of the world: texts of queries, texts of documents, rows of relevant documents."""
    config = config_lib.load(run / "config.json")
    store = open_store(config)
    task = load_retrieval(config, "q2i", store)
    texts = [shown_fields(item, TEXT_FIELDS) for item in task.corpus_items(store)]
    kept = sorted({text: row for row, text in enumerate(texts) if text}.values())  # without ties
    relevant = [np.flatnonzero(np.isin(kept, rows)) for rows in task.relevant]
    queries = [i for i, rows in enumerate(relevant) if len(rows)]
    return [task.queries[i] for i in queries], [texts[row] for row in kept], [relevant[i] for i in queries]


@pytest.fixture
def task(searches):
    queries, documents, relevant = searches

    class Searches(AbsTaskRetrieval):
        metadata = metadata("WorldSearches")

        def load_data(self, num_proc=None, **_):
            split = {
                "corpus": Dataset.from_list([{"id": f"d{i}", "text": text} for i, text in enumerate(documents)]),
                "queries": Dataset.from_list([{"id": f"q{i}", "text": text} for i, text in enumerate(queries)]),
                "relevant_docs": {f"q{i}": {f"d{row}": 1 for row in rows} for i, rows in enumerate(relevant)},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Searches()


def scores(model, task):
    results = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 16})
    return results.task_results[0].scores["test"][0]


def own_recall(run, searches, dims):
    queries, documents, relevant = searches
    embedder, tasks = sail_jax.load(run), config_lib.load(run / "config.json").eval.tasks
    q = embedder.encode(queries, dims=dims, instruction=tasks["q2i"].query_instruction)
    d = embedder.encode(documents, dims=dims, instruction=tasks["q2i"].target_instruction)
    rows, _ = top_k(q, d, max(CUTS), block=64, exclude=np.full(len(q), -1))
    return recall_at_k(rows, relevant, CUTS)


@pytest.mark.slow
def test_a_run_and_its_export_score_as_our_own_recall(run, task, searches, tmp_path):
    expected = own_recall(run, searches, 16)
    of_run = scores(mteb_model(run, dims=16), task)
    export(run, tmp_path / "export")
    with pytest.raises(SailError, match="give trust_remote_code=True if you trust them"):
        mteb_model(tmp_path / "export", dims=16)
    of_export = scores(mteb_model(tmp_path / "export", dims=16, trust_remote_code=True), task)
    assert 0 < expected["recall@20"] < 1
    for k in CUTS:
        assert of_run[f"recall_at_{k}"] == pytest.approx(expected[f"recall@{k}"], abs=1e-4)
        assert of_export[f"recall_at_{k}"] == pytest.approx(of_run[f"recall_at_{k}"], abs=1e-4)


@pytest.mark.slow
def test_texts_pictures_and_instructions(run):
    model, embedder = mteb_model(run, prompts={"Retrieval-query": "Find it.", "Other": "x"}), sail_jax.load(run)
    picture = Image.open(io.BytesIO(open_png()))
    batches = [{"text": ["glass", "bread"], "image": [picture, None]}, {"text": [None], "image": [picture]}]
    items = [{"text": "glass", "image": picture}, "bread", {"image": picture}]
    instructions = config_lib.load(run / "config.json").eval.tasks["q2i"]
    about = {"task_metadata": metadata("AnyTask"), "hf_split": "test", "hf_subset": "default"}
    for side, instruction in (
        (PromptType.query, "Find it."),
        (PromptType.document, instructions.target_instruction),
        (None, None),  # by role: the bare text is a query
    ):
        z = model.encode(batches, **about, prompt_type=side, batch_size=2, show_progress_bar=False)
        np.testing.assert_allclose(z, embedder.encode(items, instruction=instruction), atol=1e-5)
    similarity = np.asarray(model.similarity(z, z))
    np.testing.assert_allclose(similarity, z @ z.T, atol=1e-5)
    assert model.mteb_model_meta.name == "sail_jax/run" and model.mteb_model_meta.embed_dim == 32
    with pytest.raises(SailError, match="precision"):
        model.encode(batches, **about, precision="int8")


@pytest.mark.slow
def test_sound_is_heard_and_videos_are_refused_by_runs_and_exports(run, tmp_path):
    export(run, tmp_path / "export")
    samples = np.sin(np.arange(8000) / 9).astype(np.float32)
    sounds = [{"array": samples, "sampling_rate": 16_000}, None, {"array": samples[None], "sampling_rate": 16_000}]
    picture = Image.open(io.BytesIO(open_png()))
    batch = {"text": ["glass", "bread.jpg", None], "audio": sounds, "image": [None, picture, None]}
    heard = encode_audio(samples, 16_000)
    items = [{"text": "glass", "audio": heard}, {"text": "bread.jpg", "image": picture}, {"audio": heard}]
    about = {"task_metadata": metadata("AnyTask"), "hf_split": "test", "hf_subset": "default"}
    document = config_lib.load(run / "config.json").eval.tasks["q2i"].target_instruction
    expected = sail_jax.load(run).encode(items, instruction=document)
    for path in (run, tmp_path / "export"):
        model = mteb_model(path, trust_remote_code=True)
        z = model.encode([batch, batch], **about, prompt_type=PromptType.document, batch_size=2)
        np.testing.assert_allclose(z, np.tile(expected, (2, 1)), atol=1e-4)
        assert "audio" in model.mteb_model_meta.modalities
        texts = [{"text": ["bread.jpg"], "video": [None]}]
        assert model.encode(texts, **about, prompt_type=PromptType.query).shape == (1, 32)
        with pytest.raises(SailError, match="AnyTask shows videos"):
            model.encode([batch | {"video": [None, "film", None]}], **about, prompt_type=PromptType.document)


def open_png():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(255, size=(9, 9, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_a_folder_without_a_model_is_refused(run, tmp_path):
    with pytest.raises(SailError, match="no run"):
        mteb_model(tmp_path)
    with pytest.raises(SailError, match="1 to 32"):
        mteb_model(run, dims=64)
