"""Arrays from .npz files of others: measured by their headers before memory is set aside, and never unpickled."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.files import read_limited

# What zipfile and numpy raise at broken files, beside ValueError; RuntimeError stands for an encrypted member.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, TypeError),
    *(SyntaxError, tokenize.TokenError),
)


def read_arrays(path: Path, *, limit: int) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; what their headers promise is added up before memory is set aside for any.

    Args:
        path: The file.
        limit: Most bytes of all arrays together.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file, holds Python objects, or promises more than `limit` bytes.
    """
    content = read_limited(path, limit=limit)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > limits.GOLDEN_ARRAYS:
                raise ValueError(f"{len(members):,} arrays, where at most {limits.GOLDEN_ARRAYS:,} are read")
            arrays: dict[str, NDArray[Any]] = {}
            for member in members:
                array = _read_array(archive, member, room=limit - sum(each.nbytes for each in arrays.values()))
                arrays[member.filename.removesuffix(".npy")] = array
            return arrays
    except _UNREADABLE as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, room: int) -> NDArray[Any]:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename!r} holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= room:
            raise ValueError(f"{member.filename!r} promises {size:,} bytes, where {room:,} are left")
        content = stream.read(size)
        if len(content) != size or stream.read(1):  # reading on to the end also compares the CRC
            raise ValueError(f"{member.filename!r} does not hold the {size:,} bytes its header promises")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
