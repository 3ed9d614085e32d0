"""What is fuzzed: how its inputs are made, and who reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """One input as a single run of bytes.

    Attributes:
        embed: Bytes to the files of an input.
        taken: Files of an input to its bytes.
    """

    embed: Callable[[bytes], Files]
    taken: Callable[[Files], bytes]


def only(name: str, others: Files | None = None) -> Grown:
    """One file, beside others that stay as they are."""
    return Grown(embed=lambda content: {**(others or {}), name: content}, taken=lambda files: files.get(name, b""))


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What is fuzzed.

    Attributes:
        make: A random generator to the files of one input.
        read: Reads them in their folder; returns, or raises EdgefaceError.
        trial: What `try_apart` would run first; None where nothing native reads the files.
        grown: The file that coverage leads; None where native code does the reading.
    """

    make: Callable[[random.Random], Files]
    read: Callable[[Path], object]
    trial: Callable[[Path], object] | None = None
    grown: Grown | None = None
