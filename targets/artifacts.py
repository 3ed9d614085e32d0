"""What a model file is on disk: the suffix of each target, the parts a model may consist of, and their digests."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeface import limits
from edgeface.errors import ModelError
from edgeface.files import sha256_file, sha256_json

SUFFIXES = {"android": ".tflite", "ios": ".mlpackage", "openvino": ".xml", "onnx": ".onnx"}


def parts(path: Path) -> Iterator[Path]:
    """Every file a model consists of: an .xml and the .bin beside it, what an .mlpackage folder holds, or itself."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
        return
    yield path
    if path.suffix == ".xml":
        yield path.with_suffix(".bin")


def require_readable(path: Path) -> None:
    """Refuse a model that is not made of plain files, before anything opens it.

    A pipe would be waited for and a device read without end; a link inside a package could lead anywhere.

    Raises:
        ModelError: A part is no plain file, leads out of its package, or there is more than `limits` allows.
    """
    entries = sorted(path.rglob("*")) if path.is_dir() else [part for part in parts(path) if part.exists()]
    total = 0
    for entry in entries:
        found = entry.stat() if entry.exists() else entry.lstat()
        if path.is_dir() and not entry.resolve().is_relative_to(path.resolve()):
            raise _unreadable(f"a link out of the package, to {entry.resolve()}", "files of its own", where=entry)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise _unreadable("not a plain file", "one", where=entry)
        total += found.st_size
    if len(entries) > limits.MODEL_FILES:
        raise _unreadable(f"{len(entries):,} files", f"at most {limits.MODEL_FILES:,}", where=path)
    if total > limits.MODEL_BYTES:
        raise _unreadable(f"{total:,} bytes", f"at most {limits.MODEL_BYTES:,}", where=path)


def _unreadable(found: str, expected: str, *, where: Path) -> ModelError:
    return ModelError(found, expected=expected, where=str(where), do="Copy or build it again")


def size_bytes(path: Path) -> int:
    """Size of a model with all its parts; 0 for what is not there."""
    return sum(part.stat().st_size for part in parts(path) if part.is_file())


def digests(path: Path) -> dict[str, str]:
    """Part, named from the folder the model lies in, to the hex digest of its bytes."""
    return {part.relative_to(path.parent).as_posix(): sha256_file(part) for part in parts(path)}


def entry(path: Path) -> dict[str, Any]:
    """What a manifest records of a model: its size and digests, one over all parts for a model of several."""
    found = digests(path)
    if len(found) == 1:
        return {"size_bytes": size_bytes(path), "sha256": next(iter(found.values()))}
    return {"size_bytes": size_bytes(path), "sha256": sha256_json(found), "parts": found}


def check(path: Path, recorded: Mapping[str, Any]) -> None:
    """Compare a model with what its manifest recorded.

    Raises:
        ModelError: A part is missing, altered or too many; it is named.
    """
    if not path.exists():
        raise ModelError("is missing", expected="the file its manifest lists", where=str(path), do="Build it again")
    expected = recorded.get("parts") or {path.name: recorded.get("sha256")}
    if not isinstance(expected, dict):
        raise ModelError("no digests", expected="a sha256 for each part", where=str(path), do="Build it again")
    here = {part.relative_to(path.parent).as_posix(): part for part in parts(path)}
    for name in sorted({*expected, *here}):
        where = str(path.parent / name)
        if name not in here or not here[name].is_file():
            raise ModelError("is missing", expected="the file its manifest lists", where=where, do="Build it again")
        if name not in expected:
            raise ModelError("is no part of this model", expected="the files it was built with", where=where)
        if sha256_file(here[name]) != expected[name]:
            raise ModelError(
                "its content does not match the manifest's sha256",
                expected="the file as it was built",
                where=where,
                do="Build it again, or copy it again",
            )
