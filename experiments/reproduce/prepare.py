"""Makes what claims start from: worlds, a model of another world, balanced weights, a recommender's tables.

Every step is a verb in a process of its own, and is not repeated when its result is there. The configs are written
beside the results.

    FOLDER/content/          the content world: raw, data
    FOLDER/pretrained/       another seed's content world, a model trained on it, and its export
    FOLDER/balanced/         an early model of the content world, and the weights by it
    FOLDER/histories/        the recommender's world, its content model, the export, the embeddings, all tables
    FOLDER/semantic_ids/     semantic IDs of these embeddings
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from experiments.enhancement import GID, hold_out
from experiments.processes import call
from experiments.reproduce.bases import Scale, base, scaled, use
from experiments.reproduce.claim import Claim
from experiments.reproduce.claims.data import SOURCES
from experiments.reproduce.claims.recommender import CONTENT
from sail_jax import config as config_lib
from sail_jax.config.differences import differences
from sail_jax.errors import SailError

# Seed of the worlds, and of the world that models are trained on before.
SEED, OTHER_SEED = 0, 1
PRETRAINED_STEPS, EARLY_STEPS, CONTENT_STEPS = 600, 100, 400
LEVELS = "32,32,32"


class Preparation:
    """Makes what claims need in a folder.

    Args:
        folder: of all that is prepared.
        scale: the scale of the experiments.
        say: gets a line when something is made.
    """

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str], None] = print) -> None:
        self.folder, self._scale, self._say = folder, scale, say

    def make(self, claims: Iterable[Claim]) -> None:
        """Makes all that some claims need, unless it is there."""
        needs = {"content" for claim in claims if claim.world == "content"}
        needs |= {name for claim in claims for name in claim.needs}
        for name in ("content", "pretrained", "balanced", "histories", "semantic_ids"):
            if name in needs:
                getattr(self, f"_make_{name}")()

    def data(self, world: str) -> Path:
        """The data folder of a world."""
        return self.folder / ("content" if world == "content" else "histories") / "data"

    def _make_content(self) -> None:
        self._world("content", base("content", self._scale), SEED)

    def _make_pretrained(self) -> None:
        config = base("content", self._scale)
        self._world("pretrained", config, OTHER_SEED)
        weights = {"pairs": 2.0, "themes": 1.0, "looks": 1.0, "sounds": 1.0, "topic_search": 1.0}
        use(config, weights, ("pairs",), steps=PRETRAINED_STEPS)
        # Each sense is learned where nothing else is shown.
        for name, pattern in {"themes": "T->T", "looks": "V->V", "sounds": "A->A"}.items():
            config.data.datasets[name]["patterns"] = (pattern,)
        config.data.batch_size = 64
        self._model("pretrained", config)

    def _make_balanced(self) -> None:
        self._make_content()
        config = base("content", self._scale)
        config.seed, config.data.dir = SEED, str(self.data("content"))
        use(config, dict.fromkeys(SOURCES, 1.0), ("pairs", "topic_search"), steps=EARLY_STEPS)
        run = self._trained("balanced", config)
        weights = self.folder / "balanced" / "weights.json"
        self._once(weights, "balance", "--workdir", str(run), "--output", str(weights))

    def _make_histories(self) -> None:
        config = base("recommender", self._scale)
        raw, data = self._world("histories", config, SEED)
        made = ("--source", str(raw), "--output", str(data / "tables"), "--workdir", str(data))
        file = ("--config", str(self._file("histories", "world")))
        self._once(data / "tables" / "pairs.json", "pairs", *file, *made)
        if not (data / "tables" / GID).exists():
            hold_out(data / "tables")
        config.stages = {"1_content": {"steps": CONTENT_STEPS, "weights": CONTENT, "warmup_steps": 20}}
        config.data.batch_size = 64
        run, vectors = self._model("histories", config), self.folder / "histories" / "embeddings"
        self._once(vectors / "embeddings.json", "embed", "--workdir", str(run), "--output", str(vectors))
        self._once(data / "tables" / "sequences.json", "sequences", *file, *made, "--embeddings", str(vectors))

    def _make_semantic_ids(self) -> None:
        self._make_histories()
        folder, vectors = self.folder / "semantic_ids", str(self.folder / "histories" / "embeddings")
        self._once(
            folder / "codebooks" / "semantic_ids.json",
            *(
                "semantic-ids",
                "fit",
                "--embeddings",
                vectors,
                "--output",
                str(folder / "codebooks"),
                "--levels",
                LEVELS,
            ),
        )
        self._once(
            folder / "ids.parquet",
            *("semantic-ids", "assign", "--embeddings", vectors, "--codebooks", str(folder / "codebooks")),
            *("--output", str(folder / "ids.parquet")),
        )

    def _world(self, name: str, config: ConfigDict, seed: int) -> tuple[Path, Path]:
        """Generates and ingests a world; sets the config to it, and returns the folders of both."""
        raw, data = self.folder / name / "raw", self.folder / name / "data"
        config.seed, config.data.dir = seed, str(data)
        file = self._write(name, "world", config)
        self._once(raw / "world.json", "world", "--config", str(file), "--output", str(raw))
        self._once(data / "ingest.json", "ingest", "--config", str(file), "--source", str(raw), "--workdir", str(data))
        return raw, data

    def _model(self, name: str, config: ConfigDict) -> Path:
        """Trains a model and exports it; returns its run directory."""
        run, export = self._trained(name, config), self.folder / name / "export"
        self._once(export / "config.json", "export", "--workdir", str(run), "--output", str(export))
        return run

    def _trained(self, name: str, config: ConfigDict) -> Path:
        scaled(config, self._scale)
        run, file = self.folder / name / "run", self._write(name, "model", config)
        steps = config_lib.total_steps(config_lib.build(config))
        self._once(run / "checkpoints" / str(steps), "train", "--config", str(file), "--workdir", str(run))
        return run

    def _file(self, name: str, what: str) -> Path:
        return self.folder / name / f"{what}.json"

    def _write(self, name: str, what: str, config: ConfigDict) -> Path:
        """Writes the config that something is made with; what is there must have been made with the same."""
        file, built = self._file(name, what), config_lib.build(config)
        if file.is_file():
            found = next(differences(config_lib.load(file), built), None)
            if found is not None:
                raise SailError(
                    f"{file.parent} was made with another {found.key} (was {found.first!r}, is {found.second!r}): name "
                    "another --workdir."
                )
        file.parent.mkdir(parents=True, exist_ok=True)
        config_lib.save(built, file)
        return file

    def _once(self, result: Path, *words: str) -> None:
        """Runs a verb, unless its result exists."""
        if not result.exists():
            self._say(f"{words[0]} -> {result}")
            call(*words)
