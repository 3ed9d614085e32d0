"""Files: written so that nothing half-written is ever taken for whole (aside, fsync, rename), read within limits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeface import limits
from edgeface.errors import EdgefaceError, OutputError

# What a place that cannot take an output answers: full, read-only, not ours, or a file where a folder should be.
NO_ROOM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def no_room(error: BaseException) -> OSError | None:
    """The system's answer behind an error, when it is that a place cannot take an output.

    Native code (safetensors, converters) wraps the answer into types of its own, and keeps its words.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return error
    words = str(error)
    return next((OSError(code, os.strerror(code)) for code in _FULL if os.strerror(code) in words), None)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file or folder; the system gives it back when the process ends, however it ends.

    Returns:
        False when another process has it. True too where there are no such locks: Windows, some network file systems.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _aside(path: Path, *, end: str = "partial") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def is_aside(name: str) -> bool:
    """Whether a name is that of a file or folder which is being written, or was when its process was killed."""
    return re.fullmatch(r"\..+\.\d+\.(partial|old)", name) is not None


def settle(path: Path) -> None:
    """Put right what processes left that were killed while they wrote `path`.

    A folder that had stepped aside for its successor comes back where neither is in its place; unfinished files and
    folders go. What a living process writes, here or on another machine, is not touched.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(partial|old)")
    try:
        found = [(entry.name, name.fullmatch(entry.name)) for entry in os.scandir(path.parent)]
    except OSError:
        return
    for left, match in found:
        if match is None or _is_running(int(match[1])) or _is_held(path.with_name(left)):
            continue
        with contextlib.suppress(OSError):
            if match[2] == "old" and not os.path.lexists(path):
                path.with_name(left).replace(path)
            else:
                _delete(path.with_name(left))


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 is no question
        return True
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    # A number may also be that of a process which has ended and waits for its parent to take note (in a container whose
    # first process takes note of none, for ever), or of a thread.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # no such folder on this system, or ended meanwhile
        return True
    told = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return told.get("State", "").strip()[:1] not in ("Z", "X") and told.get("Tgid", str(pid)).strip() == str(pid)


def _is_held(path: Path) -> bool:
    """Whether a process has the lock of a file or folder that is being filled."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder, and what killed processes left of it."""
    _delete(folder)
    settle(folder)


def require_room(folder: Path, size_bytes: int, *, where: Path) -> None:
    """Refuse a folder that cannot take so many bytes, before native code ends the process in the middle of a file.

    Args:
        folder: Is there.
        size_bytes: Set aside for a moment where the system can do that without writing them.
        where: What the error names.

    Raises:
        OutputError: It is full, read-only or not ours, or files may not become that large.
    """
    aside = _aside(folder / "room")
    try:
        with aside.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size_bytes)
    except OSError as error:
        raise output_error(error, where=where) from error
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place.

    Raises:
        OutputError: The folder is full, read-only or not ours; an earlier file at `path` is untouched.
    """
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path)
        with aside.open("wb") as stream:
            try_lock(stream.fileno())
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            aside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise output_error(error, where=path) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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
        content = bytearray()
        # Python sets aside what it is asked to read: a limit of gigabytes must not ask for them.
        step = min(found.st_size, limit) + 1
        while len(content) <= limit and (part := stream.read(min(step, limit + 1 - len(content)))):
            content += part
    if len(content) > limit:
        raise ValueError(f"{max(found.st_size, len(content)):,} bytes, where at most {limit:,} are read")
    return bytes(content)


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
    aside = _aside(folder)
    descriptor = -1
    try:
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        settle(folder)
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
        descriptor = _open_folder(aside)
        yield aside
        for path in sorted(aside.rglob("*")):
            if not path.is_symlink():
                _fsync(path)
        _fsync(aside)
        _swap(aside, folder)
        _fsync(folder.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        full = no_room(error)
        if full is not None and not isinstance(error, EdgefaceError):
            raise output_error(full, where=folder) from error
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open_folder(folder: Path) -> int:
    """Hold a folder's lock until the descriptor is closed; -1 where folders cannot be opened."""
    if os.name != "posix":
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try_lock(descriptor)
    return descriptor


def _swap(aside: Path, folder: Path) -> None:
    """Rename a filled folder into its place, over an earlier folder or a link to one."""
    try:
        aside.replace(folder)  # over nothing, or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
    if _exchange(aside, folder):
        _delete(aside)
        return
    # Between these two renames neither is in its place; after a kill there, `settle` puts the old one back.
    old = _aside(folder, end="old")
    folder.replace(old)
    try:
        aside.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    _delete(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    import ctypes

    here = -100  # AT_FDCWD: names count from the working folder
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            done = library.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2)  # RENAME_EXCHANGE
        elif sys.platform == "darwin":
            done = library.renamex_np(os.fsencode(one), os.fsencode(other), 2)  # RENAME_SWAP
        else:
            return False
    except (OSError, AttributeError, TypeError):  # no such function; Windows has no library to name
        return False
    return bool(done == 0)
