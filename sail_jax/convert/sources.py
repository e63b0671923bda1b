"""Finds a checkpoint: a local directory, or a repository of the Hugging Face hub."""

import dataclasses
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from sail_jax.config import Config
from sail_jax.config.storage import HUB
from sail_jax.errors import SailError

# With the prefix it may be downloaded; without it, it has to be in the cache, since it may be a mistyped folder.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Patterns of the files to download: no code, and no pickles unless they are allowed.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def is_hub_id(source: str) -> bool:
    """Whether a source of weights is a hub id, "hf://owner/name" or "hf://owner/name@revision".

    The prefix may be left out, unless there is a local directory of that name.
    """
    return bool(_HUB_ID.fullmatch(source.removeprefix(HUB))) and not Path(source).expanduser().is_dir()


def absolute_sources(config: Config) -> Config:
    """The config with absolute paths in `init_from`, so that it is valid in every working directory."""
    directories = {part: Path(source).expanduser() for part, source in config.init_from.items()}
    absolute = {part: str(path.absolute()) for part, path in directories.items() if path.is_dir()}
    return dataclasses.replace(config, init_from=config.init_from | absolute)


def find_checkpoint(source: str, *, allow_bin: bool = False) -> Path:
    """Finds a checkpoint, downloading it if necessary, and returns its local directory.

    Args:
        source: a directory, or a hub id "hf://owner/name" with an optional "@revision", which is downloaded to the
            cache of huggingface_hub unless it is there. Without the prefix it is only looked for in the cache.
        allow_bin: whether pickled weights may be downloaded too.

    Raises:
        SailError: there is no such directory, and the hub has no such repository or cannot be reached.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if not is_hub_id(source):
        raise SailError(
            f"There is no directory {source}, and it is not a hub id (hf://owner/name, or hf://owner/name@revision)."
        )
    name, _, revision = source.removeprefix(HUB).partition("@")
    cached = not source.startswith(HUB)
    try:
        patterns = [*_FILES, *(["*.bin"] if allow_bin else [])]
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=patterns, local_files_only=cached
            )
        )
    except (OSError, OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        if cached:
            raise SailError(
                f"There is no directory {directory.absolute()}. For the repository {name} of the Hugging Face hub, "
                f"write {HUB}{source}."
            ) from error
        raise SailError(
            f"There is no directory {source}, and {name} could not be fetched from the Hugging Face hub "
            f"({str(error).splitlines()[0]}). Without a network, download it elsewhere (`hf download {name}`) and name "
            "the directory."
        ) from error
