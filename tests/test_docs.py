"""README and docs say what is so: their commands parse, their code builds, their links, paths and settings exist."""

import argparse
import ast
import contextlib
import copy
import difflib
import functools
import importlib
import importlib.util
import io
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest
import tiny
from test_imports import TIERS

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config import Config
from sail_jax.config.schema import override, to_dict
from sail_jax.errors import SailError
from sail_jax.objectives.objective import LOSSES
from training_runs import on_devices

REPO = tiny.REPO
DOCS = REPO / "docs"
PAGES = sorted([*REPO.glob("*.md"), *DOCS.rglob("*.md")])
README_LINES = 150
# The config that fragments (`config.a.b = ...`) change, and that stands for the files that the reader writes.
BASE = REPO / "configs" / "quickstart.py"
READERS_OWN = ("configs/mine.py",)
SOURCES = ("sail_jax/", "configs/", "experiments/", "docs/", "tests/")
PLACEHOLDER = re.compile(r"\.{0,2}/?[A-Z_/]+")


class Found(NamedTuple):
    """Something that a page shows, and the number of its line."""

    line: int
    text: str
    language: str = ""


def blocks(page: Path) -> list[Found]:
    """The fenced blocks of a page."""
    found, language, start, lines = [], None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, start, lines = fence[1], number + 1, []
        elif fence:
            found.append(Found(start, textwrap.dedent("\n".join(lines)), language))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}:{start}: the block is not closed; add a line of three backticks."
    return found


def prose(page: Path) -> Iterator[Found]:
    """The lines that stand outside of fenced blocks."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\s*```", line):
            fenced = not fenced
        elif not fenced:
            yield Found(number, line)


def code_spans(page: Path) -> Iterator[Found]:
    """What stands between backticks in a line."""
    for line in prose(page):
        yield from (Found(line.line, code) for code in re.findall(r"`([^`]+)`", line.text))


def commands(page: Path) -> Iterator[Found]:
    """The commands of bash blocks, with continued lines joined, and those between backticks in the text."""
    for block in blocks(page):
        if block.language == "bash":
            joined, start = "", block.line
            for number, line in enumerate(block.text.splitlines(), block.line):
                joined += line.removesuffix("\\")
                if not line.endswith("\\"):
                    yield from (Found(start, part) for part in re.split(r"\s&&\s", joined))
                    joined, start = "", number + 1
    for code in code_spans(page):
        if re.match(r"(\S*/)?(python\S* (-m (sail_jax|experiments)|experiments/)|sail-jax )", code.text):
            yield code


def command_problems(page: Path) -> Iterator[str]:
    """Commands that no shell, verb or experiment takes."""
    for command in commands(page):
        try:
            words = shlex.split(command.text, comments=True)
        except ValueError as error:
            yield f"{page}:{command.line}: no shell reads {command.text!r} ({error}); mend its quotes."
            continue
        if problem := _problem_of(words):
            yield f"{page}:{command.line}: `{command.text.strip()}`: {problem} Mend the page, or what it shows."


def _problem_of(words: list[str]) -> str:
    """What is wrong with a command; nothing where it is right, or not ours."""
    if not words:
        return ""
    program = words[0].rpartition("/")[2]
    if program == "sail-jax":
        return _problem_of_verb(words[1:])
    if not program.startswith("python"):
        return ""
    if words[1:3] == ["-m", "sail_jax"]:
        return _problem_of_verb(words[3:])
    if words[1] == "-m" and words[2].startswith("experiments"):
        return _problem_of_experiment(REPO / words[2].replace(".", "/"), words[3:])
    if words[1].startswith("experiments/"):
        return _problem_of_experiment(REPO / words[1].removesuffix(".py"), words[2:])
    return ""


def _problem_of_verb(words: list[str]) -> str:
    if words[:1] == ["VERB"] or (words[1:] == ["--help"] and words[0] in verbs()):
        return ""
    given: list = []
    with parsing_only(lambda parser, options, overrides: given.extend((options, overrides))):
        refused = complaint_of(words)
    if not given:
        return f"its parser refuses it ({refused}); `--help` of the verb lists what it takes."
    options, overrides = given
    config = getattr(options, "config", None)
    return _problem_of_overrides(overrides, None if config is None else _file_of(config))


@contextlib.contextmanager
def parsing_only(then: Callable) -> Iterator[None]:
    """Makes the command line only parse: instead of a verb, it calls `then(parser, options, settings)`."""
    plain = argparse.ArgumentParser.parse_args

    def parse_args(parser, *rest):
        options = plain(parser, *rest)
        options.run = lambda options, overrides: then(parser, options, overrides)
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        yield


def complaint_of(words: list[str]) -> str:
    """The last line that the command line writes to stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(words)
    return said.getvalue().strip().rpartition("\n")[2]


def _file_of(config: Path) -> Path:
    """The file that is read for the config that a page names."""
    if str(config) in READERS_OWN:
        return BASE
    return REPO / config if (REPO / config).is_file() else config


def _problem_of_overrides(overrides: list[str], file: Path | None) -> str:
    """The problem of words `a.b=value` for a config file or the defaults; values in capitals are placeholders."""
    given = [word for word in overrides if not PLACEHOLDER.fullmatch(word.partition("=")[2])]
    try:
        config_lib.build(override(Config, _values_of(file), given))
    except SailError as error:
        return str(error)
    return ""


def _values_of(file: Path | None) -> dict:
    """The settings of a config file, or the defaults, as dicts that may be changed."""
    return copy.deepcopy(_loaded(file))


@functools.cache
def _loaded(file: Path | None) -> dict:
    return to_dict(Config() if file is None else config_lib.load(file))


def _problem_of_experiment(path: Path, words: list[str]) -> str:
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return f"there is no {file}."
    text = file.read_text(encoding="utf-8")
    unknown = [word for word in words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
    return f"{file} has no option {unknown[0]}." if unknown else ""


@functools.cache
def verbs() -> dict[str, argparse.ArgumentParser]:
    """The verbs of the command line, with their parsers."""
    parsers: list = []
    with parsing_only(lambda parser, options, overrides: parsers.append(parser)):
        main(["describe", "--settings"])
    return actions_of(parsers[0])


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below a parser."""
    return dict(parser._subparsers._group_actions[0].choices) if parser._subparsers else {}


def python_problems(page: Path) -> Iterator[str]:
    """Python blocks that do not compile, import unknown names, or have a config that cannot be built."""
    for block in blocks(page):
        if block.language == "python":
            try:
                _check_block(block.text)
            except Exception as error:
                yield f"{page}:{block.line}: {type(error).__name__}: {error}. Mend the block."


def _check_block(text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sail_jax":
            for alias in node.names:
                _require_name(node.module, alias.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sail_jax":
            _require_name("sail_jax", node.attr)
    if "def get_config" in text:
        names: dict = {}
        exec(text, names)
        config_lib.build(names["get_config"]())
    elif text.startswith("config."):
        config = config_lib.default_config()
        config.update(_values_of(BASE))
        exec(text, {"config": config})
        config_lib.build(config)


def _require_name(module: str, name: str) -> None:
    if module == "sail_jax.evaluation.mteb_model":  # importing it takes mteb
        assert (
            importlib.util.find_spec(module) and f"def {name}(" in (REPO / f"{module.replace('.', '/')}.py").read_text()
        )
    elif not hasattr(importlib.import_module(module), name):
        importlib.import_module(f"{module}.{name}")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = [line.text.lstrip("#").strip() for line in prose(page) if re.match(r"#+ ", line.text)]
    shown = [re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in shown}


def link_problems(page: Path) -> Iterator[str]:
    """Links to missing files and headings."""
    for line in prose(page):
        for target in re.findall(r"\]\(([^)\s]+)\)", line.text):
            path, _, part = target.partition("#")
            file = page.parent / path if path else page
            if re.match(r"https?://", target):
                continue
            if not file.exists():
                yield f"{page}:{line.line}: the link {target} leads to no file; mend the path."
            elif part and part not in anchors(file):
                yield f"{page}:{line.line}: {file} has no heading #{part}; it has {', '.join(sorted(anchors(file)))}."


def path_problems(page: Path) -> Iterator[str]:
    """Files between backticks that are missing, or not written from the top of the repository."""
    for line, code, _ in code_spans(page):
        path = code.partition("*")[0]
        if re.search(r"\s|[A-Z]{2,}|/X\.", path) or path in READERS_OWN:
            continue
        if path.startswith(SOURCES) and not (REPO / path).exists():
            yield f"{page}:{line}: there is no {code}; name the file that has it now."
        elif re.fullmatch(r"[\w/]+/\w+\.py", path) and not path.startswith(SOURCES):
            yield f"{page}:{line}: write {code} from the top of the repository, such as sail_jax/{code}."


def setting_problems(page: Path) -> Iterator[str]:
    """Unknown settings between backticks: `config.a.b`, `a.b`, and words `--config.a.b=value`."""
    for line, code, _ in code_spans(page):
        if "…" in code or code.startswith("--config.a.b"):
            continue
        if code.startswith("--config.") and "=" in code:
            words = [word.removeprefix("--config.") for word in shlex.split(code)]
            files = (BASE, *sorted((REPO / "configs").glob("*.py")))
            if all(_problem_of_overrides(words, file) for file in files):
                problem = _problem_of_overrides(words, BASE)
                yield f"{page}:{line}: `{code}` fits no file in configs/: {problem} Mend the page."
        elif re.fullmatch(r"(config\.)?[a-z]\w*(\.[\w*]+)+(=\S*)?", code) and not code.endswith(
            (".py", ".json", ".html")
        ):
            keys = code.removeprefix("config.").partition("=")[0].split(".")
            if code.startswith("config.") or keys[0] in Config.__dataclass_fields__:
                problem = _problem_of_key([key for key in keys if key != "*" and not key.isupper()])
                if problem:
                    yield f"{page}:{line}: `{code}`: {problem} Mend the page."


def _problem_of_key(keys: list[str]) -> str:
    try:
        override(Config, {}, [f"{'.'.join(keys)}=1"])
    except SailError as error:
        return str(error)
    return ""


CHECKS = (command_problems, python_problems, link_problems, path_problems, setting_problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_page(page, check, monkeypatch):
    monkeypatch.chdir(REPO)
    problems = list(check(page))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "```bash\npython -m sail_jax train --workdir x\n```",
            "page.md:2: `python -m sail_jax train --workdir x`: its parser",
        ),
        ("```bash\ncd x && sail-jax trian --workdir x\n```", "its parser refuses it"),
        (
            "```bash\n.venv/bin/python -m sail_jax evaluate \\\n --workdir x --config.eval.kss=1\n```",
            "page.md:2: `.venv/bin/python -m sail_jax evaluate  --workdir x --config.eval.kss=1`: "
            "There is no setting config.eval.kss",
        ),
        ("```bash\nsail-jax train --config configs/none.py --workdir x\n```", "There is no config file"),
        ("```bash\necho 'a\n```", "no shell reads"),
        ("run `python -m experiments.ablation`", "there is no"),
        ("run `python experiments/mining_scale.py --sizes 3`", "no option --sizes"),
        ("```python\nfrom sail_jax.items import Thing\n```", "page.md:2: ModuleNotFoundError"),
        ("```python\nimport sail_jax\n\nsail_jax.open('x')\n```", "page.md:2: ModuleNotFoundError"),
        ("```python\nx = (\n```", "SyntaxError"),
        ("```python\nconfig.data.datasets.other.patterns = ('O->O',)\n```", "AttributeError"),
        ("```python\nconfig.train.steps = 'many'\n```", "page.md:2: TypeError: Could not override field 'steps'"),
        ("[there](nowhere.md)", "page.md:1: the link nowhere.md leads to no file"),
        ("# One\n\n[two](#two)", "has no heading #two; it has one"),
        ("see `sail_jax/parallel/rules.py`", "there is no sail_jax/parallel/rules.py"),
        ("see `objectives/info_nce.py`", "from the top of the repository"),
        ("set `data.worker`", "There is no setting config.data.worker. Did you mean"),
        ("`--config.model.kind=dual_towers`", "fits no file in configs/: config.model.kind is"),
    ],
)
def test_a_page_that_is_wrong_is_told_where_and_what_to_do(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    page = tmp_path / "page.md"
    page.write_text(text)
    problems = [problem for check in CHECKS for problem in check(page)]
    assert len(problems) == 1 and said in problems[0], problems


def test_the_tiers_of_contributing_are_those_that_are_checked():
    rows = [line.text.split("|")[2] for line in prose(REPO / "CONTRIBUTING.md") if re.match(r"\| \d+ \|", line.text)]
    shown = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    rooms = {path.stem for path in (REPO / "sail_jax").iterdir() if not path.name.startswith("__")}
    checked = [set(tier) & rooms for tier in TIERS]
    assert shown == [tier for tier in checked if tier], "Write the TIERS of tests/test_imports.py into CONTRIBUTING.md."


def test_files_that_code_names_exist():
    wrong = []
    for path in [path for room in ("sail_jax", "configs", "experiments") for path in (REPO / room).rglob("*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for name in re.findall(r"\b(?:sail_jax|configs|experiments|docs|tests)/[\w/]+\.(?:py|md)\b", line):
                if not (REPO / name).is_file() and Path(name).stem not in ("x", "X"):
                    wrong.append(f"{path}:{number}: there is no {name}; name the file that has it now.")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_in_the_index():
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", (DOCS / "README.md").read_text())}
    missing = [page for page in DOCS.rglob("*.md") if page not in linked and page != DOCS / "README.md"]
    assert not missing, f"docs/README.md does not list {missing}; add a line for each."


def test_every_verb_is_in_the_guide_to_the_command_line():
    rows = [line.text.split("|")[1] for line in prose(DOCS / "configuration.md") if line.text.startswith("| `")]
    missing = set(verbs()) - set(re.findall(r"`([a-z-]+)`", " ".join(rows)))
    assert not missing, f"The table of verbs in docs/configuration.md lacks {sorted(missing)}; add a line for each."


def test_the_example_in_the_help_of_every_verb_parses(monkeypatch):
    monkeypatch.chdir(REPO)
    parsers = [*verbs().values(), *(parser for verb in verbs().values() for parser in actions_of(verb).values())]
    for parser in parsers:
        example = (parser.epilog % {"prog": parser.prog}).partition("example: ")[2]
        problem = _problem_of(shlex.split(example)) if example else "there is none."
        assert not problem, f"The example of `{parser.prog} --help`, {example!r}: {problem} Mend it."


def test_help_has_examples_on_one_line_and_breaks_no_name(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    parsers = [*verbs().values(), *(parser for verb in verbs().values() for parser in actions_of(verb).values())]
    for parser in parsers:
        lines = parser.format_help().splitlines()
        example = (parser.epilog % {"prog": parser.prog}).partition("example: ")
        assert "".join(example[1:]) in lines
        assert not [line for line in lines if re.search(r"\w-$", line)], parser.prog


def test_the_readme_is_short_and_its_map_has_every_room():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= README_LINES, f"README.md has {lines} lines; move what is over {README_LINES} to docs/."
    rooms = sorted(path.parent.name for path in (REPO / "sail_jax").glob("*/__init__.py"))
    missing = [room for room in rooms if f"  {room}/" not in text]
    assert not missing, f"The map of the house in README.md lacks {missing}; add a line for each."


@pytest.mark.slow
def test_the_code_of_the_page_on_python_computes_the_gradient_and_takes_the_steps(run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    on_one, sharded = (block.text for block in blocks(DOCS / "python.md") if block.language == "python")
    names: dict = {}
    with on_devices(1):
        exec(on_one, names)
    pairs = names["config"].data.batch_size
    assert [z.shape[:2] for z in names["z"]] == [(len(views), pairs) for views in names["recipe"].views]
    assert jnp.isfinite(names["loss"])
    assert jnp.any(names["gradients"]["model"]["llm"]["embedding"] != 0)
    with on_devices(2):
        exec(sharded, names)
    assert names["mesh"].size == 2
    assert names["state"].step == 3
    assert jnp.isfinite(names["metrics"]["loss"])


def messages() -> set[str]:
    """Every text of the package, with "…" where a value is put in."""
    found = set()
    for path in (REPO / "sail_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def _nearest_message(shown: str, known: set[str]) -> str:
    return max(known, key=lambda text: difflib.SequenceMatcher(None, shown, text[: len(shown)], autojunk=False).ratio())


def test_every_message_of_the_page_on_errors_is_one_of_ours():
    known, wrong = messages(), []
    for line in prose(DOCS / "troubleshooting.md"):
        if shown := re.match(r"\| `(.+?)` \|", line.text):
            parts = [part for part in shown[1].split("…") if part.strip(" .:,;")]
            pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
            if not any(pattern.search(text) for text in known):
                wrong.append(
                    f"docs/troubleshooting.md:{line.line}: no message reads {shown[1]!r}; write it as it is now, "
                    f"perhaps {_nearest_message(shown[1], known)!r}."
                )
    assert not wrong, "\n".join(wrong)


def test_every_loss_stands_in_the_tables_of_losses_and_of_the_log():
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    losses, logged = (text.partition(f"## {head}\n")[2].partition("\n## ")[0] for head in ("Losses", "What is logged"))
    missing = [name for name in LOSSES if f"| `{name}` (" not in losses or f"`{name}`" not in logged]
    assert not missing, f"docs/training.md does not say what the losses {missing} are; add them to both tables."
