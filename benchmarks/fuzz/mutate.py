"""Changes to bytes, words and trees, and the values that have broken readers before."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import struct
import sys
from collections.abc import Iterator
from typing import Any

# Values that have broken readers of JSON, TOML, CSV and manifests before, here or elsewhere.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "", " ", "a", "0", "²", "٣", "1e999", "nan", "\0", "a\0b", "\ud800", "\u202e"),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\windows",
        ".",
        "..",
        "a/b",
        "a" * 5000,
        "[bold]x[/bold]",
        "\x1b[2J",
        "{}",
    ),
    *([], {}, [[]], [None], [0] * 50, {"a": 1}, [{}], ["a", 1], {"": {}}, {"schema": 1}),
)
_WORDS = (
    *(
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b"\t",
        b",",
        b'"',
        b"'",
        b"-1",
        b"1e999",
        b"nan",
    ),
    *(
        b"inf",
        b"../",
        b"/",
        b"\\",
        b"0",
        b"99999999999999999999",
        b"=",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\x80",
        b"\xc2\xb2",
        b"#",
    ),
    *(
        b"%s",
        b"\xed\xa0\x80",
        b"x" * 300,
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x80",
        b" ",
        b"  ",
        b";",
    ),
)


def mutate_bytes(dice: random.Random, content: bytes) -> bytes:
    """A few changes at random places."""
    data = bytearray(content)
    for _ in range(1 << dice.randrange(4)):
        size = len(data)
        at = dice.randrange(size + 1)
        kind = dice.randrange(8)
        if kind == 0 and size:
            data[min(at, size - 1)] ^= 1 << dice.randrange(8)
        elif kind == 1 and size:
            data[min(at, size - 1)] = dice.randrange(256)
        elif kind == 2:
            data[at:at] = dice.choice(_WORDS)
        elif kind == 3:
            del data[at : at + dice.choice((1, 2, 4, 16, size))]
        elif kind == 4 and size:
            start = dice.randrange(size)
            data[at:at] = data[start : start + dice.choice((1, 4, 32, 256))]
        elif kind == 5 and size >= 4:
            place = dice.randrange(size - 3)
            number = dice.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, size, dice.randrange(2**32)))
            data[place : place + 4] = struct.pack(dice.choice("<>") + "I", number)
        elif kind == 6 and size:
            start = dice.randrange(size)
            length = dice.choice((1, 2, 4, 8, 64))
            data[at : at + length] = data[start : start + length]
        elif kind == 7:
            word = dice.choice(_WORDS)
            data[at : at + len(word)] = word
    return bytes(data)


def mutate_tree(dice: random.Random, value: Any) -> Any:
    """A copy of plain values with a few of them replaced, removed, repeated or exchanged."""
    tree = copy.deepcopy(value)
    for _ in range(1 << dice.randrange(3)):
        holders = list(_holders(tree))
        if not holders:
            return any_value(dice)
        holder = dice.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        kind = dice.randrange(6)
        if not keys or kind == 0:
            if isinstance(holder, dict):
                holder[dice.choice(("", "a", "schema", "name", "..", "\0", "files", "x" * 300))] = any_value(dice)
            else:
                holder.append(any_value(dice))
            continue
        key = dice.choice(keys)
        if kind == 1:
            del holder[key]
        elif kind == 2:
            other = dice.choice(holders)
            holder[key] = copy.deepcopy(other)
        elif kind == 3 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[key]) for _ in range(dice.choice((1, 3, 100))))
        elif kind == 3:
            holder[mutate_word(dice, str(key))] = holder.pop(key)
        elif kind == 4 and isinstance(holder[key], str):
            holder[key] = mutate_word(dice, holder[key])
        elif kind == 4 and isinstance(holder[key], int | float):
            holder[key] = dice.choice(
                (-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key]), [holder[key]])
            )
        else:
            holder[key] = any_value(dice)
    return tree


def mutate_word(dice: random.Random, word: str) -> str:
    return mutate_bytes(dice, word.encode("utf-8", "replace")).decode("utf-8", "replace")


def _holders(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _holders(item)


def any_value(dice: random.Random) -> Any:
    if dice.randrange(20) == 0:
        deep: Any = 0
        for _ in range(dice.choice((20, 150))):
            deep = [deep] if dice.randrange(2) else {"a": deep}
        return deep
    return copy.deepcopy(dice.choice(_VALUES))


def mutated_json(dice: random.Random, tree: Any) -> bytes:
    """JSON of a mutated tree, or of the whole one with its bytes mutated."""
    kind = dice.randrange(40)
    if kind == 0:
        return b"[" * 100_000
    if kind == 1:
        return dice.choice(
            (b"", b"null", b"[]", b"{}", b'"a"', b"1", b"\xff\xfe{\0}\0", b"9" * 5000, b'{"schema":' * 3000)
        )
    if kind < 10:
        return mutate_bytes(dice, json.dumps(tree).encode())
    with room():
        return json.dumps(mutate_tree(dice, tree)).encode()


@contextlib.contextmanager
def room() -> Iterator[None]:
    """What is written may have long numbers, and nested values in nested values; who reads it has the usual limits."""
    digits, depth = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(20 * depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(depth)
        sys.set_int_max_str_digits(digits)


def toml_of(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"value = {_toml_value(tree)}\n"
    return "".join(f"{json.dumps(str(key))} = {_toml_value(item)}\n" for key, item in tree.items())


def _toml_value(item: Any) -> str:
    if isinstance(item, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml_value(each)}" for key, each in item.items()) + "}"
    if isinstance(item, list):
        return "[" + ", ".join(map(_toml_value, item)) + "]"
    if isinstance(item, float) and not math.isfinite(item):
        return str(item)
    return json.dumps("" if item is None else item, ensure_ascii=False)
