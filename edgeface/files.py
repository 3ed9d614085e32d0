"""Files: written so that nothing half-written is ever taken for whole (aside, fsync, rename), read within limits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeface import limits
from edgeface.errors import OutputError

# What a place that cannot take an output answers: full, read-only, not ours, or a file where a folder should be.
NO_ROOM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
)


def output_error(error: OSError, *, where: Path) -> OutputError:
    """The error a user sees when `where` cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(
        f"cannot write ({reason.lower()})",
        expected="a folder with room that this user may write to",
        where=str(where),
        do="Free some room, change its permissions, or name another folder with --out",
    )


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex digest of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place.

    Raises:
        OutputError: The folder is full, read-only or not ours; an earlier file at `path` is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise output_error(error, where=path) from error


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys, indented, by `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_limited(path: Path, *, limit: int) -> bytes:
    """The bytes of a plain file that has no more than `limit` of them.

    Raises:
        OSError: It cannot be opened or read.
        ValueError: It is larger, or a pipe or device, which may never end.
    """
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a plain file")
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{max(found.st_size, len(content)):,} bytes, where at most {limit:,} are read")
    return content


def read_json(path: Path, *, limit: int = limits.MANIFEST_BYTES) -> Any:
    """Parse a JSON file; its faults are the caller's to explain.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON (NaN is none), no UTF-8, nested too deep, or larger than `limit` bytes.
    """
    text = read_limited(path, limit=limit).decode("utf-8")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def is_plain_name(name: object) -> bool:
    """Whether a name from a manifest is that of a file in the manifest's own folder, on every system."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and name not in (".", "..")
    )


@contextlib.contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder aside; on success it takes `folder`'s place, on any error nothing of it remains.

    Yields:
        The folder to write into, on the same file system as `folder`.

    Raises:
        OutputError: The parent is full, read-only or not ours; an earlier folder is untouched.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file():
                _fsync(path)
        _swap(aside, folder)
        _fsync(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if error.errno in NO_ROOM:
            raise output_error(error, where=folder) from error
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _swap(aside: Path, folder: Path) -> None:
    # A folder cannot be renamed over a filled one, so the old one steps aside first.
    if folder.is_symlink():
        folder.unlink()
    if not folder.exists():
        aside.replace(folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.replace(old)
    try:
        aside.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
