"""Lets folders lie in buckets, s3:// and gs://, by local mirrors whose finished files are uploaded.

    CACHE/s3/BUCKET/KEY          the mirror of s3://BUCKET/KEY; `place` names it, `fetch` brings it up to date
    CACHE/notes/s3/BUCKET/KEY    which version of the object the file is

The bucket is the truth. A file that `files.commit` finishes is in the bucket before it has its name in the mirror, so
that an upload that is cut short leaves nothing in either. Files and folders whose names end in .partial or .spool are
never uploaded. The mirror may be removed at any time when nothing runs.

CACHE is $SAIL_JAX_BUCKETS, by default ~/.cache/sail_jax/buckets. Of the shards of item stores it keeps
$SAIL_JAX_BUCKETS_GB at most, if that is set: those that were read last.
"""

import contextlib
import errno
import fcntl
import functools
import importlib.util
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sail_jax.errors import DiskError, SailError

# s3://bucket/x, and what pathlib makes of it: s3:/bucket/x.
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<key>.*)")


class _Client(NamedTuple):
    """What reads and writes the buckets of a scheme."""

    package: str
    extra: str  # installs the package
    module: str
    file_system: str  # the class of the module, one of fsspec
    credentials: str  # where they come from
    endpoint: str  # the variable that names another server
    upload_options: dict[str, Any]


_KNOWN = {
    "s3": _Client(
        *("s3fs", "s3", "s3fs", "S3FileSystem"),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine",
        "AWS_ENDPOINT_URL",
        {},
    ),
    # The class that gcsfs exports asks by gRPC, before each upload and download, what kind of bucket it is; without an
    # answer it tries for a minute, each time. What is done here needs only the class of `core`.
    "gs": _Client(
        *("gcsfs", "gcs", "gcsfs.core", "GCSFileSystem"),
        "GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, or a role of the machine",
        "STORAGE_EMULATOR_HOST",
        {"consistency": "md5"},  # of what the server says that it has stored
    ),
}
_UNFINISHED = (".partial", ".spool")
_MARK = ".partial"  # stands in a folder of a bucket until all of it is uploaded
_SHARDS = "*.array_record"
_THREADS = 8
_SENT_BETWEEN_LINES = 5 * 2**20  # bytes; gcsfs gives larger files requests of their own
_asked: set[Path] = set()  # by `fetch_once`
_CREDENTIALS = (
    *("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"),
    "NonRetryableError",  # of gcsfs: they cannot be refreshed
)
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "s3fs")
_UNPRINTED = logging.NullHandler()  # without any handler Python prints logs; those of a user get them as well


def place(path: str | Path) -> Path:
    """Returns the local path of a user's text: the mirror of an address, or the path itself.

    Raises:
        SailError: it is the address of a store that is not known, or names no bucket.
    """
    match = ADDRESS.match(str(path))
    if not match:
        return Path(path)
    scheme, key = match["scheme"].lower(), match["key"].strip("/")
    if scheme not in _KNOWN:
        raise SailError(
            f"{scheme}://{key} is no address that can be read and written: buckets are s3://BUCKET/FOLDER and "
            "gs://BUCKET/FOLDER. Mount others and name the folder, or copy it."
        )
    if not _is_key(key):
        raise SailError(f"{scheme}://{key} names no folder of a bucket: write {scheme}://BUCKET/FOLDER.")
    return _root() / scheme / key


def require_local(path: str | Path, what: str) -> None:
    """Checks that a path that must be one of this machine is not the address of a bucket.

    Raises:
        SailError: it is one; the message begins with `what`, such as "--config".
    """
    if match := ADDRESS.match(str(path)):
        raise SailError(
            f"{what} is {match['scheme']}://{match['key']}, the address of a bucket, where only a path of this machine "
            "can be read and written: copy it, or mount the bucket."
        )


def address(path: Path) -> str:
    """Returns the address that a path of a mirror stands for.

    It is empty for any other path, and for what is not finished.
    """
    if not path.is_relative_to(_root()):
        return ""
    scheme, *parts = path.relative_to(_root()).parts or ("",)
    if scheme not in _KNOWN or not parts or any(part.endswith(_UNFINISHED) for part in parts):
        return ""
    return f"{scheme}://{'/'.join(parts)}"


def with_addresses(text: object) -> str:
    """Returns a text for the user, with addresses instead of the paths of mirrors."""
    return re.sub(rf"{re.escape(str(_root()))}/({'|'.join(_KNOWN)})/", r"\1://", str(text))


def names(path: Path) -> set[str]:
    """Returns the paths of all files within a folder, as the bucket has them if it is a mirror."""
    if address(path):
        return set(_listing(path))
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def sizes(path: Path) -> dict[str, int]:
    """Returns {path within the folder: bytes} of all files within a folder, as `names` does."""
    if address(path):
        return {name: int(info["size"]) for name, info in _listing(path).items()}
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}


def fetch(path: Path, leave_out: Callable[[str], bool] = lambda name: False) -> None:
    """Brings a file or folder of a mirror up to date with the bucket; does nothing for any other path.

    Args:
        path: the file or the folder.
        leave_out: tells by its path within the folder whether a file is neither downloaded nor removed.

    Raises:
        SailError: the bucket cannot be read; the message says why and what to do.
    """
    if not address(path):
        return
    with _locked(path):
        found = _listing(path)
        old = [name for name, info in found.items() if not leave_out(name) and not _is_current(path / name, info)]
        _make_room(sum(found[name]["size"] for name in old))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: _download(path / name, found[name]), old))
        for name in _noted(path):
            if name not in found and not leave_out(name):
                _forget(path / name)


def fetch_once(path: Path) -> None:
    """Brings a file of a mirror up to date when this process reads it first, or has removed it since."""
    if address(path) and not (path in _asked and path.is_file()):
        fetch(path)
        _asked.add(path)


def put(source: Path, path: Path) -> None:
    """Uploads a complete file as a path of a mirror; does nothing for any other path."""
    if not address(path):
        return
    modified = source.stat().st_mtime_ns
    with _explained(path):
        _upload(source, path)
        _write_note(path, _files(path).info(_key(path)), modified)


def put_folder(source: Path, path: Path) -> None:
    """Uploads a complete folder as one of a mirror.

    Until all of it is there, `fetch` and `names` see nothing of it.

    Raises:
        SailError: the bucket has another folder there already.
    """
    if not address(path):
        return
    if source != path and _listing(path):
        raise SailError(f"{address(path)} is not empty: name another folder, or remove this one.")
    _remove_objects(path)
    mark = f"{_key(path)}/{_MARK}"
    with _explained(path):
        _files(path).pipe_file(mark, b"")
    files = [file for file in source.rglob("*") if file.is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda file: put(file, path / file.relative_to(source)), files))
    with _explained(path):
        _files(path).rm_file(mark)


def put_changed(path: Path) -> None:
    """Uploads a file of a mirror, or all files of a folder, as far as they have changed here."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if address(file) and file.is_file() and _changed(file):
            put(file, file)


def opened(path: Path) -> BinaryIO:
    """Opens a file for reading, in the bucket where its mirror lacks it; only what is read comes."""
    if path.is_file() or not address(path):
        return path.open("rb")
    with _explained(path):
        return _files(path).open(_key(path), "rb")


def modified(path: Path) -> float:
    """Returns when a file was written last, in seconds by the clock of the bucket or of the file system.

    Raises:
        FileNotFoundError: there is none.
    """
    if not address(path):
        with path.open("rb") as file:  # NFS asks the server anew only then
            return os.fstat(file.fileno()).st_mtime
    info = _listing(path).get("")
    if info is None:
        raise FileNotFoundError(errno.ENOENT, "No such object", address(path))
    return (info.get("LastModified") or info["mtime"]).timestamp()


def remove(path: Path) -> None:
    """Removes a file or folder, in the bucket too; does nothing if there is none."""
    if address(path):
        _remove_objects(path)
        for name in [*_noted(path)]:
            _forget(path / name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def drop(path: Path) -> None:
    """Removes a folder of a mirror here, not in the bucket: the next `fetch` downloads it again."""
    if address(path):
        shutil.rmtree(path, ignore_errors=True)


def _root() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sail_jax" / "buckets"
    return Path(os.environ.get("SAIL_JAX_BUCKETS") or cache).resolve()  # others may resolve the paths in it


def _is_key(key: str) -> bool:
    """Returns whether a path has parts that can be those of a file here, and cannot lead out of the mirror."""
    return all(part not in ("", ".", "..") for part in key.split("/"))


def _key(path: Path) -> str:
    return address(path).partition("://")[2]


def _files(path: Path) -> Any:
    """Returns the file system of the bucket that a path of a mirror belongs to."""
    return _file_system(address(path).partition("://")[0], os.getpid())


@functools.lru_cache
def _file_system(scheme: str, pid: int) -> Any:  # a forked process needs connections of its own
    del pid
    client = _KNOWN[scheme]
    if importlib.util.find_spec(client.package) is None:
        raise SailError(f"{scheme}:// needs the package {client.package}: pip install 'sail_jax[{client.extra}]'.")
    module = importlib.import_module(client.module)  # only now: most commands touch no bucket
    for name in _CLIENTS:  # they log what they raise too
        logging.getLogger(name).addHandler(_UNPRINTED)
    return getattr(module, client.file_system)(use_listings_cache=False, skip_instance_cache=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns errors of the clients of buckets into one line with the address and a remedy.

    Raises:
        SailError: there are no valid credentials, no bucket, or access is denied.
        DiskError: the bucket cannot be reached, or anything else is wrong with it.
    """
    where = address(path)
    scheme, _, key = where.partition("://")
    try:
        yield
    except Exception as error:
        if isinstance(error, SailError) or not _is_of_a_client(error):
            raise
        bucket, said = key.partition("/")[0], str(error).strip().splitlines() or [type(error).__name__]
        if type(error).__name__ in _CREDENTIALS or getattr(error, "code", None) == 401:  # gcsfs asks without any
            raise SailError(
                f"{where}: there are no valid credentials for it; set {_KNOWN[scheme].credentials}."
            ) from error
        if isinstance(error, PermissionError) or said[0].startswith("Forbidden: "):  # of gcsfs
            raise SailError(
                f"{where}: access is denied ({said[-1][:300]}). Give these credentials the right to list, read, write "
                f"and delete in the bucket {bucket}, or set {_KNOWN[scheme].credentials}."
            ) from error
        # gcsfs names the address of the objects of the bucket.
        missing = rf"NoSuchBucket|bucket does not exist|(^|/)b/{re.escape(bucket)}/o(\?|$)"
        if isinstance(error, FileNotFoundError) and re.search(missing, said[0]):
            raise SailError(f"{where}: there is no bucket {bucket}. Make it, or correct the name.") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        gone = "no such object" if isinstance(error, FileNotFoundError) else said[0][:200]
        raise DiskError(
            f"{where} cannot be read or written ({gone}). Check the network, {_KNOWN[scheme].endpoint} if it is set, "
            "and the bucket; what was uploaded before is kept, and the same command goes on."
        ) from error


def _is_of_a_client(error: Exception) -> bool:
    """Returns whether an error tells of a bucket, and not of this machine or of the program."""
    if type(error).__module__.partition(".")[0] in _CLIENTS:
        return True
    if isinstance(error, ValueError):
        return str(error).startswith("Bad Request: ")  # of gcsfs
    return isinstance(error, OSError) and not error.filename


def _upload(source: Path, path: Path) -> None:
    scheme, _, key = address(path).partition("://")
    files, options = _files(path), _KNOWN[scheme].upload_options
    if scheme == "gs" and source.stat().st_size < _SENT_BETWEEN_LINES:
        data = source.read_bytes()
        # The lines are "--==0==" and end in LF: a server that takes a CR before one for a part of the line loses it.
        if data.endswith(b"\r") or b"--==0==" in data:
            files.pipe_file(key, data, chunksize=len(data), **options)
            return
    files.put_file(str(source), key, **options)


def _remove_objects(path: Path) -> None:
    with _explained(path):
        keys = list(_files(path).find(_key(path)))
        with contextlib.suppress(FileNotFoundError):  # another process has removed them all meanwhile
            if keys:
                _files(path).rm(keys)


def _listing(path: Path) -> dict[str, dict[str, Any]]:
    """Returns {path within the folder, empty for a file itself: facts} of the objects of a bucket."""
    with _explained(path):
        found = _files(path).find(_key(path), detail=True)
    start = len(_key(path)) + 1
    inside = {key[start:]: info for key, info in found.items() if info["type"] == "file" and not key.endswith("/")}
    unfinished = tuple(name.removesuffix(_MARK) for name in inside if name.rpartition("/")[2] == _MARK)
    return {
        name: info for name, info in inside.items() if not name.startswith(unfinished) and (not name or _is_key(name))
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time download a folder."""
    lock = _note(path).with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(path: Path, info: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with _explained(path):
            _files(path).get_file(_key(path), str(partial))
        if partial.stat().st_size != info["size"]:
            raise DiskError(f"{address(path)} changed while it was read; run the same command again.")
        _write_note(path, info, partial.stat().st_mtime_ns)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return _root() / "notes" / path.relative_to(_root()) / ".note"


def _write_note(path: Path, info: dict[str, Any], mtime: int) -> None:
    """Notes the version of an object, and the time of the file that is the same."""
    note = _note(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_name(f"{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps({"version": _version(info), "mtime": mtime}))
    partial.replace(note)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_note(path).read_text())
    except (OSError, ValueError):
        return {}


def _version(info: dict[str, Any]) -> str:
    return f"{info.get('ETag') or info.get('etag')} {info['size']}"


def _is_current(path: Path, info: dict[str, Any]) -> bool:
    """Returns whether a file is this version of the object, or what this machine has made of it since."""
    note = _read_note(path)
    return note.get("version") == _version(info) and path.is_file() and path.stat().st_mtime_ns >= note["mtime"]


def _changed(path: Path) -> bool:
    return path.stat().st_mtime_ns != _read_note(path).get("mtime")


def _noted(path: Path) -> Iterator[str]:
    """Yields the paths within a folder, empty for a file itself, of what was once downloaded or uploaded."""
    folder = _note(path).parent
    for note in sorted(folder.rglob(".note")):
        name = str(note.parent.relative_to(folder))
        yield "" if name == "." else name


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    _note(path).unlink(missing_ok=True)


def _make_room(size: int) -> None:
    """Removes the shards of item stores that were read longest ago, as far as the limit demands it."""
    limit = os.environ.get("SAIL_JAX_BUCKETS_GB", "")
    if not limit:
        return
    try:
        room = float(limit) * 1e9 - size
    except ValueError:
        raise SailError(f"SAIL_JAX_BUCKETS_GB is {limit!r}; write a number of gigabytes.") from None
    facts = [(file, file.stat()) for scheme in _KNOWN for file in (_root() / scheme).rglob(_SHARDS)]
    for file, fact in sorted(facts, key=lambda of: of[1].st_atime, reverse=True):
        room -= fact.st_size
        if room < 0:
            file.unlink(missing_ok=True)
