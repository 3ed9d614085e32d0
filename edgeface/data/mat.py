"""MATLAB's .mat files, version 5 to 7.2: cells, structs, text and numbers, as corpora hold their lists in.

Every count in such a file is one that a reader may set memory aside for before it sees what is there, and cells may lie
in cells without end. Here each count is compared with the bytes that are left, and depth and unpacked size have limits.

Source:
    MAT-File Format, The MathWorks, chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeface import limits
from edgeface.files import read_limited

_HEADER = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15  # classes of arrays
_DEEPEST = 16  # a list of structs is 3 deep


def read_mat(path: Path, name: str) -> Any:
    """One variable of a .mat file.

    Args:
        path: The file.
        name: The variable's.

    Returns:
        Cells as a list; a struct as a dict, an array of them as a list; text as a string; numbers as a 1-D array.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file, has no such variable, holds other kinds of arrays there, or is larger, deeper or
            unpacks to more than `limits` and this reader allow.
    """
    content = read_limited(path, limit=limits.MAT_BYTES)
    mark = content[124:_HEADER]
    order = {b"IM": "<", b"MI": ">"}.get(mark[2:])
    if order is None or mark[:2] not in (b"\0\1", b"\1\0"):
        raise ValueError("no .mat file of version 5 to 7.2")
    left = limits.MAT_BYTES
    whole = _Reader(content, order)
    for kind, start, stop in whole.elements(_HEADER, len(content)):
        reader = whole
        if kind == _COMPRESSED:
            unpacked = _unpack(content[start:stop], most=left)
            left -= len(unpacked)
            reader = _Reader(unpacked, order)
            kind, start, stop = reader.only(0, len(unpacked))
        if kind == _MATRIX and reader.name(start, stop) == name:
            return reader.array(start, stop, depth=0)
    raise ValueError(f"no variable {name!r}")


def _unpack(packed: bytes, *, most: int) -> bytes:
    engine = zlib.decompressobj()
    try:
        unpacked = engine.decompress(packed, most + 1)  # a byte too many says that there are more
    except zlib.error as error:
        raise ValueError(f"damaged ({error})") from None
    if len(unpacked) > most:
        raise ValueError(f"unpacked more than {limits.MAT_BYTES:,} bytes")
    if not engine.eof:
        raise ValueError("cut short")
    return unpacked


@dataclass(frozen=True)
class _Reader:
    """Elements of a run of bytes: a tag of kind and size, and what it counts.

    Attributes:
        data: The bytes.
        order: "<" or ">".
    """

    data: bytes
    order: str

    def element(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Kind, first byte, last byte and a place behind the padding of the element at a place."""
        if at + 8 > end:
            raise ValueError("cut short")
        word, size = struct.unpack_from(f"{self.order}II", self.data, at)
        if word >> 16:  # up to four bytes stand in the tag itself
            kind, size, start, after = word & 0xFFFF, word >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError(f"{size:,} bytes in a tag that holds four")
            return kind, start, start + size, after
        start = at + 8
        if size > end - start:
            raise ValueError(f"an element of {size:,} bytes, where {end - start:,} are left")
        padding = 0 if word == _COMPRESSED else -size % 8
        return word, start, start + size, min(start + size + padding, end)

    def elements(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        while at < end:
            kind, start, stop, at = self.element(at, end)
            yield kind, start, stop

    def only(self, at: int, end: int) -> tuple[int, int, int]:
        kind, start, stop, _ = self.element(at, end)
        return kind, start, stop

    def parts(self, start: int, stop: int) -> Callable[[int], tuple[int, int, int]]:
        """Asks for the next element of a matrix, which must be one of the given kind; 0 takes any."""
        found = self.elements(start, stop)

        def following(expected: int) -> tuple[int, int, int]:
            kind, first, last = next(found, (0, 0, 0))
            if not kind or (expected and kind != expected):
                raise ValueError(f"an element of kind {kind}, where {expected or 'one more'} is due")
            return kind, first, last

        return following

    def head(self, start: int, stop: int) -> tuple[int, int, str, Callable[[int], tuple[int, int, int]]]:
        """Class, count of values and name of an array, and what follows."""
        following = self.parts(start, stop)
        _, first, last = following(_UINT32)
        if last - first != 8:
            raise ValueError("wrong flags of an array")
        (flags,) = struct.unpack_from(f"{self.order}I", self.data, first)
        _, first, last = following(_INT32)
        sizes = struct.unpack(f"{self.order}{(last - first) // 4}i", self.data[first : last - (last - first) % 4])
        if len(sizes) < 2 or min(sizes) < 0:
            raise ValueError(f"an array of size {sizes[:4]}")
        _, first, last = following(_INT8)
        return flags & 0xFF, math.prod(sizes), self.data[first:last].decode("latin-1"), following

    def name(self, start: int, stop: int) -> str:
        return self.head(start, stop)[2]

    def array(self, start: int, stop: int, *, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"arrays in arrays, more than {_DEEPEST} deep")
        if start == stop:  # an empty cell
            return []
        kind, count, _, following = self.head(start, stop)
        if count > stop - start:
            raise ValueError(f"an array of {count:,} values in {stop - start:,} bytes")

        def held() -> Any:
            _, first, last = following(_MATRIX)
            return self.array(first, last, depth=depth + 1)

        if kind == _CELL:
            return [held() for _ in range(count)]
        if kind == _STRUCT:
            _, first, last = following(_INT32)
            length = int.from_bytes(self.data[first:last], "little" if self.order == "<" else "big")
            _, first, last = following(_INT8)
            if not 0 < length <= limits.LABEL_NAME or (last - first) % length:
                raise ValueError(f"names of {length:,} bytes each in {last - first:,}")
            cut = [self.data[at : at + length].partition(b"\0")[0] for at in range(first, last, length)]
            names = [word.decode("latin-1") for word in cut]
            found = [{word: held() for word in names} for _ in range(count if names else 0)]
            return found[0] if len(found) == 1 else found
        if kind == _CHAR:
            form, first, last = following(0)
            if form not in _TEXT:
                raise ValueError(f"text of kind {form}")
            code = _TEXT[form]
            if code == "utf-16":
                code = "utf-16-le" if self.order == "<" else "utf-16-be"
            return self.data[first:last].decode(code)
        if _FIRST_NUMBER <= kind <= _LAST_NUMBER:
            form, first, last = following(0)
            values = np.dtype(self.order + _NUMBERS[form]) if form in _NUMBERS else None
            if values is None or last - first != count * values.itemsize:
                raise ValueError(f"{count:,} numbers of kind {form} in {last - first:,} bytes")
            return np.frombuffer(self.data[first:last], values)
        raise ValueError(f"an array of class {kind}")
