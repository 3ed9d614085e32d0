"""What a model answered on a source, kept in the cache, so that a second scorecard costs no second pass.

An entry is `answers/KEY.npz`: raw outputs by name. KEY is a digest of all that decides them: the model, its runtime and
the versions of everything installed, the processor, the code of edgeface that computes, the pictures. Whether the model
itself is whole is seen when it is opened, which a scorecard does in any case.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeface.errors import OutputError
from edgeface.evaluate import Outputs, Runner, hardware
from edgeface.files import sha256_json, write_bytes
from edgeface.provenance import cpu, versions

if TYPE_CHECKING:
    from edgeface.data.pack import Pack


def key(digest: str, runner: Runner, pack: Pack) -> str:
    """Name of an entry.

    Args:
        digest: Of the model.
        runner: Opened on it.
        pack: What it is to answer.
    """
    return sha256_json(
        {
            "model": digest,
            "runtime": runner.runtime,
            "precision": runner.precision,
            "hardware": hardware(runner),
            "threads": getattr(runner, "threads", 1),
            "machine": cpu(),
            "versions": versions(),
            "code": _code(),
            "pictures": pack.content_hash,
            "shape": [pack.px, pack.margin],
        }
    )


def read(name: str, runner: Runner, pack: Pack) -> Outputs | None:
    """The answers kept under a key; None without any, or when they are damaged."""
    path = _path(name)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:  # checks each array by its CRC
            outputs = {output.name: file[output.name] for output in runner.spec.outputs}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    for output in runner.spec.outputs:
        held = outputs[output.name]
        if held.dtype != np.float32 or held.shape != (len(pack.keys), *output.shape):
            return None
    return outputs


def keep(name: str, outputs: Outputs) -> None:
    """Keep answers under a key."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **outputs)
    # They only save time: a scorecard that was measured is not lost because the disk is full.
    with contextlib.suppress(OutputError):
        write_bytes(_path(name), stream.getvalue())


def _path(name: str) -> Path:
    from edgeface.data.pack import ANSWERS, cache_folder

    return cache_folder() / ANSWERS / f"{name}.npz"


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of the modules that compute answers themselves: torch networks, fake-quant, the Core ML executor."""
    import edgeface.models
    import quantize
    import targets

    content = hashlib.sha256()
    for package in (edgeface.models, quantize, targets):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()
