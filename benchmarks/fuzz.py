"""Does a reader answer every hostile file with an error of edgeface's own, in bounded time?

    python -m benchmarks.fuzz NAME...|all [--inputs 100000] [--seed 0] [--jobs 1] [--out FILE.json]
    python -m benchmarks.fuzz NAME... --engine coverage                   inputs grown by atheris instead
    python -m benchmarks.fuzz NAME --again SEED:INDEX --keep FOLDER       the files of one input, to look at

Inputs are mutations of whole files: bytes flipped, cut, repeated and exchanged; values of JSON and TOML replaced,
removed and moved; headers of safetensors and .npy rewritten with their lengths put right; checksums and digests put
right as well, so that the readers behind them are reached. Each input is a pure function of seed and index. A reader
may return or raise EdgefaceError; anything else, and more than `SLOW_S` of CPU time or `MEMORY_BYTES`, is found.

Files that native code reads are tried as `try_apart` tries them, then opened, timed and run, all in one process forked
for each input. A file that ends the trial is refused, which is what the trial is for, and counted in a column of its
own; one that passes the trial and then ends the process is found.

The coverage engine needs atheris (`pip install atheris`; no dependency of edgeface). libFuzzer, seeded with inputs of
the mutation engine, grows the one file that `Reader.grown` puts among the others, led by the branches of edgeface.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import datetime
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgeface.errors import EdgefaceError
from edgeface.processes import live_with_parent

SLOW_S = 10.0
WAIT_S = 60.0  # for a process that sleeps rather than computes
SERVED = 200  # inputs that one process reads; what native code leaks goes with it
MEMORY_BYTES = 6 << 30  # of address space, torch's reserve included
ROOT = Path(__file__).resolve().parent.parent

Files = dict[str, bytes]

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


class SlowError(BaseException):
    """A reader took more than SLOW_S; no reader catches it."""


@dataclass(frozen=True, kw_only=True)
class Grown:
    """One input as a single run of bytes.

    Attributes:
        embed: Bytes to the files of an input.
        taken: Files of an input to its bytes.
    """

    embed: Callable[[bytes], Files]
    taken: Callable[[Files], bytes]


def _only(name: str, others: Files | None = None) -> Grown:
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


# -- mutations ---------------------------------------------------------------------------------------------------------


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
            return _value(dice)
        holder = dice.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        kind = dice.randrange(6)
        if not keys or kind == 0:
            if isinstance(holder, dict):
                holder[dice.choice(("", "a", "schema", "name", "..", "\0", "files", "x" * 300))] = _value(dice)
            else:
                holder.append(_value(dice))
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
            holder[key] = _value(dice)
    return tree


def mutate_word(dice: random.Random, word: str) -> str:
    return mutate_bytes(dice, word.encode("utf-8", "replace")).decode("utf-8", "replace")


def _holders(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _holders(item)


def _value(dice: random.Random) -> Any:
    if dice.randrange(20) == 0:
        deep: Any = 0
        for _ in range(dice.choice((20, 150))):
            deep = [deep] if dice.randrange(2) else {"a": deep}
        return deep
    return copy.deepcopy(dice.choice(_VALUES))


def _json(dice: random.Random, tree: Any) -> bytes:
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
    with _room():
        return json.dumps(mutate_tree(dice, tree)).encode()


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """What is written may have long numbers, and nested values in nested values; who reads it has the usual limits."""
    digits, depth = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(20 * depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(depth)
        sys.set_int_max_str_digits(digits)


# -- recipes -----------------------------------------------------------------------------------------------------------


def _recipe() -> Reader:
    from edgeface.config import RECIPES, load_recipe, to_plain

    paths = [*sorted(RECIPES.glob("*.toml")), *sorted(RECIPES.glob("*/*.toml"))]
    texts = [path.read_bytes() for path in paths]
    plains = [to_plain(load_recipe(str(path))) for path in paths]

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(50)
        if kind == 0:
            return {
                "r.toml": dice.choice(
                    (b"a=" + b"[" * 50_000, b"a." * 50_000 + b"a=1", b"a=0x" + b"f" * 50_000, b"[a]" * 9)
                )
            }
        if kind < 15:
            return {"r.toml": mutate_bytes(dice, dice.choice(texts))}
        with _room():
            return {"r.toml": _toml(mutate_tree(dice, dice.choice(plains))).encode("utf-8", "replace")}

    return Reader(make=make, read=lambda folder: load_recipe(str(folder / "r.toml")), grown=_only("r.toml"))


def _toml(tree: Any) -> str:
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


# -- labels ------------------------------------------------------------------------------------------------------------


def _metadata() -> Reader:
    from edgeface.data import folder as reader
    from edgeface.tasks import TASKS

    names = [
        "file_name",
        "person",
        "split",
        "x",
        "y",
        "w",
        "h",
        "group_skin",
        "identity",
        "age",
        "beauty_score",
        "gender",
    ]
    names += ["smile", "expression", "attributes_acne", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy")]
    points = [str(value) for value in (10, 12, 30, 12, 20, 20, 12, 30, 28, 30)]
    rows = [
        names,
        ["a.png", "ann", "train", "1", "2", "30", "30", "i", "7", "20-29", "0.5", "male", "1", "happy", "1", *points],
        ["b.png", "bob", "val", "", "", "", "", "", "8", "31", "", "", "", "", "", *[""] * 10],
        ["c/a.png", "", "test", "0", "0", "5", "9", "ii", "", "", "1", "female", "smiling", "0", "0", *points],
        ["a.png", "ann", "train", "3", "2", "9", "9", "i", "7", "", "0", "0", "", "6", "", *points],
    ]
    pictures = dict.fromkeys(("a.png", "b.png", "c/a.png"), pictures_of_all_kinds()["rgb.png"])
    assert "smile" in TASKS

    def make(dice: random.Random) -> Files:
        table = [list(row) for row in rows]
        for _ in range(dice.randrange(4)):
            row = dice.choice(table)
            kind = dice.randrange(5)
            at = dice.randrange(len(row)) if row else 0
            if kind == 0:
                row[at:at] = [str(_value(dice))]
            elif kind == 1:
                del row[at : at + dice.choice((1, 5))]
            elif kind == 2:
                for line in table:
                    del line[at : at + 1]
            elif row:
                row[at] = str(_value(dice)) if dice.randrange(2) else mutate_word(dice, row[at])
        text = io.StringIO()
        with contextlib.suppress(csv.Error):
            csv.writer(text).writerows(table)
        content = text.getvalue().encode(
            dice.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace"
        )
        content = mutate_bytes(dice, content) if dice.randrange(2) else content
        return {**pictures, "metadata.csv": content}

    def read(folder: Path) -> object:
        split = ("", "train", "val", "test")[(folder / "metadata.csv").stat().st_size % 4]
        corpus = reader.read(folder, source="folder:x", split=split)
        for index in range(len(corpus)):
            corpus.load(index)
        return corpus

    return Reader(make=make, read=read, grown=_only("metadata.csv", pictures))


def _labels() -> Reader:
    from importlib import import_module

    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    template = " ".join(["0.5"] * 378)
    pixels = " ".join(str(value % 256) for value in range(2304))
    mtfl = b" lfw_5590\\A_0001.jpg 10 12 30 12 20 1 2 3 4 5 1 2 2 3\n net_7876/b.jpg 1 2 3 4 5 6 7 8 9 10 2 1 1 5\n"
    lists: dict[tuple[str, str], tuple[str, bytes, tuple[str, ...]]] = {
        ("mtfl", "train"): ("training.txt", mtfl * 3, ("lfw_5590/A_0001.jpg", "net_7876/b.jpg")),
        ("fairface", "val"): (
            "fairface_label_val.csv",
            b"file,age,gender,race,service_test\nval/1.jpg,20-29,Male,White,True\nval/2.jpg,03-Sep,Female,Indian,False\n",
            ("val/1.jpg", "val/2.jpg"),
        ),
        ("mebeauty", "val"): (
            "labels.csv",
            b"image,split,beauty_1to10,gender,ethnicity\n"
            b"images/a.jpg,val,5.5,male,asian\nimages/b.jpg,val,1,female,black\n",
            ("images/a.jpg", "images/b.jpg"),
        ),
        ("ferplus", "val"): (
            "fer2013new.csv",
            f"Usage,Image name,{votes}\n"
            "PublicTest,a.png,1,9,0,0,0,0,0,0,0,0\nPublicTest,b.png,0,0,0,0,0,0,0,9,0,0\n".encode(),
            ("FER2013Valid/a.png", "FER2013Valid/b.png"),
        ),
        ("fer2013", "val"): (
            "fer2013.csv",
            f"emotion,pixels,Usage\n3,{pixels},PublicTest\n0,{pixels},PublicTest\n".encode(),
            (),
        ),
        ("london", "test"): (
            "labels.csv",
            "image,set,expression,attractiveness_1to7,gender,age,ethnicity,landmarks189_xy_norm\n"
            f"images/nf__001_03.jpg,neutral_front,neutral,3.5,male,24.5,white,{template}\n"
            f"images/sf__002_08.jpg,smiling_front,smiling,,female,NA,black,{template}\n".encode(),
            ("images/nf__001_03.jpg", "images/sf__002_08.jpg"),
        ),
    }
    picture = pictures_of_all_kinds()["rgb.jpg"]
    chosen = sorted(lists)
    points = b"version: 1\nn_points: 68\n{\n" + b"12.5 13\n" * 68 + b"}\n"

    def embed(content: bytes) -> Files:
        which = int.from_bytes(content[:1]) % (len(chosen) + 1)
        if which == len(chosen):
            return {"face.pts": content[1:]}
        name, _, pictures = lists[chosen[which]]
        return {name: content[1:], **dict.fromkeys(pictures, picture), "which": str(which).encode()}

    def taken(files: Files) -> bytes:
        if "face.pts" in files:
            return bytes([len(chosen)]) + files["face.pts"]
        which = int(files["which"])
        return bytes([which]) + files[lists[chosen[which]][0]]

    def make(dice: random.Random) -> Files:
        which = dice.randrange(len(chosen) + 1)
        if which == len(chosen):
            return {"face.pts": mutate_bytes(dice, points)}
        content = lists[chosen[which]][1]
        if dice.randrange(2):
            lines = content.split(b"\n")
            row = dice.randrange(len(lines))
            words = lines[row].split(b"," if b"," in content else b" ")
            words[dice.randrange(len(words))] = str(_value(dice)).encode("utf-8", "replace")
            lines[row] = (b"," if b"," in content else b" ").join(words)
            content = b"\n".join(lines)
        else:
            content = mutate_bytes(dice, content)
        return embed(bytes([which]) + content)

    def read(folder: Path) -> object:
        if (folder / "face.pts").exists():
            from edgeface.data.points import read_pts

            return read_pts(folder / "face.pts")
        corpus, split = chosen[int((folder / "which").read_text())]
        module = import_module(f"edgeface.data.{corpus}")
        found = module.read(folder, source=f"{corpus}@{split}", split=split)
        for index in range(len(found)):
            found.load(index)
        return found

    return Reader(make=make, read=read, grown=Grown(embed=embed, taken=taken))


# -- pictures ----------------------------------------------------------------------------------------------------------


@functools.cache
def pictures_of_all_kinds() -> Mapping[str, bytes]:
    """Small pictures in every form that a phone or scanner writes."""
    from PIL import Image, PngImagePlugin

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a picture"
    turned.get_ifd(0x8769)[0x9000] = b"0220"
    words = PngImagePlugin.PngInfo()
    words.add_text("comment", "x" * 40, zip=True)
    words.add_itxt("title", "y")
    deep = Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300)
    made: list[tuple[str, Any, dict[str, Any]]] = [
        ("rgb.jpg", rgb, {"quality": 80}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("exif.jpg", rgb, {"exif": turned, "dpi": (72, 72), "comment": b"c"}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("grey.jpg", rgb.convert("L"), {}),
        ("rgb.png", rgb, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 3}),
        ("alpha.png", rgb.convert("RGBA"), {"pnginfo": words, "exif": turned}),
        ("deep.png", deep, {}),
        ("bits.png", rgb.convert("1"), {}),
        ("a.bmp", rgb, {}),
        ("palette.bmp", rgb.convert("P"), {}),
        ("a.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("lossy.webp", rgb, {"exif": turned}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}),
        ("a.ppm", rgb, {}),
    ]
    content = {}
    for name, picture, options in made:
        stream = io.BytesIO()
        suffix = name.rpartition(".")[2]
        picture.save(stream, format={"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
        content[name] = stream.getvalue()
    return content


def _image() -> Reader:
    from edgeface.data.images import read_image, read_size

    pictures = list(pictures_of_all_kinds().values())

    def make(dice: random.Random) -> Files:
        content = mutate_bytes(dice, dice.choice(pictures))
        if content[:4] == b"\x89PNG" and dice.randrange(2):
            content = _with_checksums(content)
        return {"a.jpg": content}

    def read(folder: Path) -> object:
        width, height = read_size(folder / "a.jpg")
        if width * height > 2**22:  # a size that is allowed; time goes into pictures that decode to more than noise
            return None
        return read_image(folder / "a.jpg")

    return Reader(make=make, read=read)


def _with_checksums(png: bytes) -> bytes:
    """A PNG file with the checksum of each chunk put right, so that its content is looked at."""
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(bytes(data[at + 4 : end])))
        at = end + 4
    return bytes(data)


# -- checkpoints and bundles -------------------------------------------------------------------------------------------


def _checkpoint() -> Reader:
    from edgeface.checkpoint import MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint
    from edgeface.models.network import build_network, model_spec
    from edgeface.specs import NetworkSpec, output_spec

    network = NetworkSpec(backbone="edge_s", width=0.125, input_px=16)
    model = model_spec(network, (output_spec("gender"), output_spec("landmarks5", mean_shape=((0.5, 0.5),) * 5)))
    built = build_network(network, model, seed=0)
    with tempfile.TemporaryDirectory() as name:
        made = {"seed": 0, "licences": ["x"], "research_only": False}
        folder = Path(name) / "c"
        kept = dict(list(built.state_dict().items())[:6])
        save_checkpoint(folder, kind="student", network=network, model=model, weights=kept, provenance=made)
        manifest = json.loads((folder / MANIFEST).read_text())
        weights = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]

    def make(dice: random.Random) -> Files:
        tree, content = manifest, weights
        kind = dice.randrange(4)
        if kind == 0:
            content = mutate_bytes(dice, weights)
        elif kind == 1:
            words = _json(dice, header)
            content = struct.pack("<Q", dice.choice((len(words), len(words), len(words), 2**40))) + words + body
        if kind != 3 and dice.randrange(8):
            tree = {**tree, "files": {**tree["files"], WEIGHTS: hashlib.sha256(content).hexdigest()}}
        return {MANIFEST: json.dumps(tree).encode() if kind < 2 else _json(dice, tree), WEIGHTS: content}

    def read(folder: Path) -> object:
        found = load_checkpoint(folder)
        return found.sha256, found.weights(), found.companions()

    return Reader(make=make, read=read, grown=_only(MANIFEST, {WEIGHTS: weights}))


@functools.cache
def bundle_manifest() -> dict[str, Any]:
    """A manifest as `write_bundle` writes it, with the least provenance."""
    from edgeface.config import to_plain
    from edgeface.models.network import model_spec
    from edgeface.specs import NetworkSpec, output_spec
    from targets.bundle import GOLDEN, crop_contract, input_contract, output_contract

    network = NetworkSpec(backbone="edge_s", width=0.125, input_px=16)
    spec = model_spec(network, (output_spec("gender"), output_spec("landmarks5", mean_shape=((0.5, 0.5),) * 5)))
    entry = {
        "precision": "w8a8",
        "size_bytes": 100,
        "sha256": "",
        "macs": 5,
        "grids": {"gender": {"scale": 0.5, "zero_point": 3}},
        "float_layers": [],
        "golden_runtime": "tflite-xnnpack",
    }
    return {
        "schema": 1,
        "target": "android",
        "name": spec.name,
        "model": to_plain(spec),
        "input": input_contract(spec),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": {"edge_s.w8a8.tflite": entry},
        "golden": {"file": GOLDEN, "sha256": "", "faces": 2},
        "checkpoints": {"student": "ab"},
        "provenance": {"student": {"seed": 0, "command": "x", "licences": ["x"], "research_only": False}},
        "licences": ["x"],
        "research_only": False,
        "versions": {"python": "3"},
        "commit": "",
    }


def golden_arrays() -> dict[str, Any]:
    faces = np.zeros((2, 16, 16, 3), np.uint8)
    return {
        "images": faces,
        "w8a8/gender": np.zeros((2, 2), np.int8),
        "w8a8/landmarks5": np.zeros((2, 10), np.float32),
    }


def npz(arrays: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def with_digests(tree: Any, golden: bytes, file: bytes) -> Any:
    tree = copy.deepcopy(tree)
    with contextlib.suppress(KeyError, TypeError, IndexError):
        tree["golden"]["sha256"] = hashlib.sha256(golden).hexdigest()
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
        for entry in tree["files"].values():
            entry["sha256"] = hashlib.sha256(file).hexdigest()
    return tree


def tiny_bundle() -> Files:
    """The files of a whole bundle whose model is none."""
    golden, file = npz(golden_arrays()), b"\x1c\0\0\0TFL3" + b"\0" * 92
    manifest = with_digests(bundle_manifest(), golden, file)
    return {"manifest.json": json.dumps(manifest).encode(), "golden.npz": golden, "edge_s.w8a8.tflite": file}


def _bundle() -> Reader:
    from targets.bundle import grids_of, judge_golden, read_bundle
    from targets.codegen import generate
    from targets.devices.shipped import open_bundle
    from targets.model_card import model_card
    from targets.runners import locate

    files = tiny_bundle()
    whole = json.loads(files["manifest.json"])

    def make(dice: random.Random) -> Files:
        return {**files, "manifest.json": _json(dice, whole)}

    def read(folder: Path) -> object:
        failed = None
        steps: tuple[Callable[[], object], ...] = (
            lambda: locate(folder),
            lambda: locate(folder / "edge_s.w8a8.tflite"),
            lambda: locate(folder, precision="w8a8"),
            lambda: [grids_of(entry) for entry in read_bundle(folder)["files"].values()],
        )
        try:
            steps[(folder / "manifest.json").stat().st_size % len(steps)]()
        except EdgefaceError as error:
            failed = error
        shipped = open_bundle(folder)
        manifest = dict(shipped.manifest)
        for path in shipped.files:
            found = {name: shipped.golden[f"w8a8/{name}"] for name in ("gender", "landmarks5")}
            judge_golden(manifest, path.name, shipped.golden, found, runtime="tflite-xnnpack")
        generate(manifest)
        model_card(manifest, None)
        if failed is not None:
            raise failed
        return shipped

    return Reader(make=make, read=read, grown=_only("manifest.json", files))


def _golden() -> Reader:
    from targets.bundle import read_golden

    plain = npz(golden_arrays())
    headers = ("|u1", "<f4", "|O", "<U8", "|V0", "<i8", "|S4", "('<i4', (3,))", "<M8[s]", "[('a', '<i4')]")
    shapes = (
        "(2, 16, 16, 3)",
        "(2, 2)",
        "(1099511627776,)",
        "(-1,)",
        "(-2, -3)",
        "()",
        "(0,)",
        "(2**3,)",
        "(" * 500,
        "'a'",
    )

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind == 0:
            content = mutate_bytes(dice, plain)
        else:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for name, values in golden_arrays().items():
                    member = io.BytesIO()
                    np.save(member, values, allow_pickle=False)
                    body = member.getvalue()
                    if dice.randrange(3) == 0:
                        body = mutate_bytes(dice, body)
                    elif dice.randrange(3) == 0:
                        descr, order = dice.choice(headers), dice.choice(("True", "False", "0"))
                        head = f"{{'descr': {descr if descr[0] in '([' else repr(descr)}, 'fortran_order': {order}, "
                        head += f"'shape': {dice.choice(shapes)}, }}\n"
                        size = struct.pack("<H", dice.choice((len(head), len(head), 65535, 0)))
                        body = b"\x93NUMPY" + dice.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0")) + size
                        body += head.encode() + dice.choice((values.tobytes(), b"", b"\0" * 100_000, b"\x80\x04K\x01."))
                    archive.writestr(dice.choice((f"{name}.npy",) * 8 + ("../x.npy", "/", "images.npy", name)), body)
            content = stream.getvalue()
            if kind == 1:
                content = mutate_bytes(dice, content)
        return embed(content)

    def embed(content: bytes) -> Files:
        manifest = with_digests(bundle_manifest(), content, b"")
        return {"manifest.json": json.dumps(manifest).encode(), "golden.npz": content}

    grown = Grown(embed=embed, taken=lambda files: files["golden.npz"])
    return Reader(make=make, read=read_golden, grown=grown)


# -- TFLite ------------------------------------------------------------------------------------------------------------


@functools.cache
def small_tflite() -> bytes:
    """A convolution and a reshape with weights, a signature and a note."""
    from targets.flatbuffer import Flatbuffer, import_tool, options

    schema = import_tool("ai_edge_litert.schema_py_generated")
    model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    code.version, code.builtinCode, code.deprecatedBuiltinCode = 1, 3, 3
    model.version, model.description = 3, b"small"
    model.buffers, model.operatorCodes, model.subgraphs = [schema.BufferT()], [code], [graph]
    graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = b"main", [], [], [0], [3]
    file = Flatbuffer.__new__(Flatbuffer)
    file.model = model
    file.add_tensor("image", (1, 4, 4, 3), "INT8")
    file.add_constant("weight", np.ones((2, 1, 1, 3), np.int8))
    file.add_constant("bias", np.ones(2, np.int32))
    file.add_tensor("gender", (1, 4, 4, 2), "INT8")
    file.set_grid(0, [0.5], [3])
    file.set_grid(1, [0.5, 0.25], [0, 0])
    conv = options("Conv2DOptionsT")
    conv.strideH = conv.strideW = 1
    graph.operators = [file.operator("CONV_2D", [0, 1, 2], [3], options=conv)]
    signature, first, last = schema.SignatureDefT(), schema.TensorMapT(), schema.TensorMapT()
    first.name, first.tensorIndex, last.name, last.tensorIndex = b"image", 0, b"gender", 3
    signature.signatureKey, signature.inputs, signature.outputs = b"serving_default", [first], [last]
    model.signatureDefs = [signature]
    file.set_metadata("edgeface", json.dumps({"schema": 1, "precision": "w8a8"}).encode())
    return file.pack()


def _tflite() -> Reader:
    from targets.flatbuffer import Flatbuffer, macs, operations
    from targets.tflite import read_note

    content = small_tflite()

    def make(dice: random.Random) -> Files:
        if dice.randrange(2):
            return {"a.tflite": mutate_bytes(dice, content)}
        data = bytearray(content)  # offsets and lengths stand on multiples of four
        for _ in range(1 << dice.randrange(3)):
            at = 4 * dice.randrange(len(data) // 4)
            (now,) = struct.unpack_from("<i", data, at)
            near = dice.choice(
                (now + 1, now - 1, now + 4, now - 4, -now, now * 2, dice.randrange(len(data)), 0, -1, 2**31 - 1)
            )
            struct.pack_into("<i", data, at, max(-(2**31), min(2**31 - 1, near)))
        return {"a.tflite": bytes(data)}

    def read(folder: Path) -> object:
        path = folder / "a.tflite"
        data = path.read_bytes()
        file = Flatbuffer(data)
        read_note(path)
        failed = None
        for index in range(len(file.tensors)):
            try:
                file.constant(index)
            except EdgefaceError as error:
                failed = error
            file.name(index), file.shape(index), file.dtype(index)
            file.scales(index), file.zero_points(index), file.axis(index)
        found = operations(data), macs(data), file.outputs, [file.version(each) for each in file.operators], file.input
        if failed is not None:
            raise failed
        return found

    return Reader(make=make, read=read, grown=_only("a.tflite"))


# -- devices -----------------------------------------------------------------------------------------------------------


def _result() -> Reader:
    from targets.devices.job import Slot, Subject, read_report

    slots = {
        "gender": Slot(dtype="int8", shape=(2,), scale=0.5, zero_point=3),
        "landmarks5": Slot(dtype="float32", shape=(10,), scale=0.0, zero_point=0),
    }
    subject = Subject(path=Path("edge_s.w8a8.tflite"), runtime="tflite-xnnpack", slots=slots, sha256="ab" * 32)
    answers = {"gender": np.zeros((2, 2), np.int8), "landmarks5": np.zeros((2, 10), np.float32)}
    plain = npz(answers)
    result = {
        "schema": 1,
        "nonce": "n",
        "machine": {"system": "Linux", "machine": "aarch64", "model": "x", "cores": 4, "features": ["dotprod"]},
        "versions": {"python": "3.11", "numpy": "2", "ai-edge-litert": "2"},
        "files": [
            {
                "file": "edge_s.w8a8.tflite",
                "sha256": "ab" * 32,
                "runtime": "tflite-xnnpack",
                "outputs": {
                    name: {"dtype": slot.dtype, "scale": slot.scale, "zero_point": slot.zero_point}
                    for name, slot in slots.items()
                },
                "answers": "0.npz",
                "answers_sha256": "",
                "latency": {"median_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0, "runs": 5, "load_ms": 1.0},
                "error": "",
            }
        ],
    }
    make_golden = _golden().make

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        content = plain
        if kind == 0:
            content = mutate_bytes(dice, plain)
        elif kind == 1:
            content = make_golden(dice)["golden.npz"]
        tree = copy.deepcopy(result)
        tree["files"][0]["answers_sha256"] = hashlib.sha256(content).hexdigest()  # type: ignore[index]
        return {"result.json": json.dumps(tree).encode() if kind < 2 else _json(dice, tree), "0.npz": content}

    def read(folder: Path) -> object:
        report = read_report(folder, [subject], nonce="n", count=2, on="fuzz")
        return json.dumps([dict(report.machine), dict(report.versions), report.answers[0].fault])

    return Reader(make=make, read=read, grown=_only("result.json", {"0.npz": plain}))


def _description() -> Reader:
    from targets.description import DescribedRunner, read_description, template
    from targets.protocol import Port

    inputs = (Port(name="image", dtype="float32", shape=(1, 16, 16, 3), grid=None),)
    outputs = (
        Port(name="points", dtype="float32", shape=(1, 10), grid=None),
        Port(name="sex", dtype="float32", shape=(1, 2), grid=None),
        Port(name="age", dtype="float32", shape=(1, 1), grid=None),
    )

    class Base:
        runtime, precision, threads, size_bytes, macs, operations = "x", "fp32", 1, 5, 5, None

        def __init__(self) -> None:
            self.inputs, self.outputs, self.spec, self.path = inputs, outputs, None, Path("peer.onnx")

        def answer(self, batch: Any) -> dict[str, Any]:
            return {port.name: np.ones((len(batch), *port.shape[1:]), np.float32) for port in outputs}

    tree = {
        "input": {"colour": "RGB", "mean": [0], "std": [255], "size": 16, "layout": "NHWC", "dtype": "float32"},
        "outputs": [
            {"name": "points", "task": "landmarks5", "coordinates": "pixels", "dimensions": 2, "order": "xy"},
            {"name": "sex", "task": "gender", "values": "logits", "classes": ["female", "male"]},
            {"name": "age", "task": "age", "values": "years", "scale": 100.0, "offset": 0.5},
        ],
    }
    form = template(Path("peer.onnx"), inputs, outputs).encode()
    batch = np.zeros((2, 16, 16, 3), np.uint8)

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind == 0:
            return {"a.toml": mutate_bytes(dice, form)}
        if kind == 1:
            with _room():
                return {"a.toml": _toml(mutate_tree(dice, tree)).encode("utf-8", "replace")}
        return {"a.json": _json(dice, tree)}

    def read(folder: Path) -> object:
        path = next(folder / name for name in ("a.toml", "a.json") if (folder / name).exists())
        runner: Any = DescribedRunner(Base(), read_description(path), where=str(path))  # type: ignore[arg-type]
        with np.errstate(all="ignore"):  # a scale of 1e308 is the description's own affair
            return runner.run(batch)

    return Reader(make=make, read=read, grown=_only("a.toml"))


# -- what others' kits read, after edgeface has tried it ---------------------------------------------------------------


@functools.cache
def tiny_models(kind: str) -> Mapping[str, bytes]:
    """The files of `benchmarks.tiny_models`, by their paths; written by a process of its own, so that none of the
    converters, their memory and their threads are in the one that forks."""
    from benchmarks.tiny_models import make_apart

    with tempfile.TemporaryDirectory() as name:
        make_apart(kind, Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


def _open_and_run(path: Path) -> object:
    """What verbs do with a model file that passed its trial."""
    from targets.runners import FORMATS, locate, noted

    kind = FORMATS[path.suffix]
    found = locate(path)
    spec, precision = noted(path, kind)
    runner: Any = kind.open(path, spec=spec, runtime=kind.runtimes[0], precision=precision, threads=1)
    runner.prepare(0)()
    told = runner.macs, runner.precision, runner.grids, runner.outputs, runner.spec
    port = runner.inputs[0]
    if None not in port.shape[1:] and math.prod(port.shape[1:]) < 1 << 16:
        return found, told, runner.answer(np.zeros((2, *port.shape[1:]), port.dtype))
    return found, told


def _litert() -> Reader:
    from targets.runners import FORMATS

    whole = _tflite()
    FORMATS[".tflite"].load("tflite-xnnpack")

    def trial(folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
            interpreter = Interpreter(
                model_path=str(folder / "a.tflite"), experimental_op_resolver_type=resolver, num_threads=1
            )
            interpreter.allocate_tensors()
            interpreter.invoke()

    return Reader(make=whole.make, trial=trial, read=lambda folder: _open_and_run(folder / "a.tflite"))


def _onnx() -> Reader:
    import onnx

    from targets.onnx import OnnxRunner
    from targets.runners import FORMATS

    FORMATS[".onnx"].load("onnxruntime")
    models = [onnx.ModelProto.FromString(content) for content in tiny_models("onnx").values()]

    def make(dice: random.Random) -> Files:
        model = dice.choice(models)
        if dice.randrange(3) == 0:
            return {"a.onnx": mutate_bytes(dice, model.SerializeToString())}
        return {"a.onnx": mutate_message(dice, model)}

    def trial(folder: Path) -> None:
        runner = OnnxRunner(folder / "a.onnx", spec=None, runtime="onnxruntime", precision="", threads=1)
        runner.prepare(0)()
        _ = runner.macs

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.onnx"))


def _openvino() -> Reader:
    import openvino

    from targets.runners import FORMATS

    FORMATS[".xml"].load("openvino")
    files = tiny_models("openvino")

    def make(dice: random.Random) -> Files:
        name = dice.choice(("float", "int8"))
        text, weights = files[f"{name}.xml"], files[f"{name}.bin"]
        kind = dice.randrange(4)
        if kind == 0:
            text = mutate_bytes(dice, text)
        elif kind == 1:
            weights = mutate_bytes(dice, weights)
        else:
            text = _other_words(dice, text)
        return {"a.xml": text, "a.bin": weights}

    def trial(folder: Path) -> None:
        compiled = openvino.Core().compile_model(str(folder / "a.xml"), "CPU", {"INFERENCE_NUM_THREADS": 1})
        if all(port.get_partial_shape().is_static for port in compiled.inputs):
            compiled.create_infer_request().infer()

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.xml"))


def _other_words(dice: random.Random, text: bytes) -> bytes:
    """XML with a few of its attributes' or elements' words exchanged for others of the file or for odd ones."""
    for _ in range(1 << dice.randrange(3)):
        places = list(re.finditer(rb'(?<=")[^"<>]*(?=")|(?<=>)[^<>\s]+(?=<)', text))
        if not places:
            break
        place = dice.choice(places)
        odd = (b"-1", b"0", b"4294967296", b"9" * 25, b"1e999", b"", b"f8E5M2", b"dynamic", b"\xff", b"1,1,1,1,1,1")
        word = dice.choice((dice.choice(places).group(), dice.choice(odd)))
        text = text[: place.start()] + word + text[place.end() :]
    return text


def _mil() -> Reader:
    import torch

    from targets.coreml import _proto
    from targets.mil import MilRunner

    torch.set_num_threads(1)
    files = tiny_models("coreml")
    inside = "Data/com.apple.CoreML/model.mlmodel"
    message = _proto("Model_pb2").Model
    models = {name: message.FromString(files[f"{name}.mlpackage/{inside}"]) for name in ("float", "int8")}

    def make(dice: random.Random) -> Files:
        name = dice.choice(sorted(models))
        made = {f"a.mlpackage/{path.partition('/')[2]}": files[path] for path in files if path.startswith(f"{name}.")}
        kind = dice.randrange(8)
        manifest, weights = "a.mlpackage/Manifest.json", "a.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
        if kind == 0:
            made[manifest] = _json(dice, json.loads(made[manifest]))
        elif kind == 1:
            made[weights] = mutate_bytes(dice, made[weights])
        elif kind == 2:
            made[f"a.mlpackage/{inside}"] = mutate_bytes(dice, made[f"a.mlpackage/{inside}"])
        else:
            made[f"a.mlpackage/{inside}"] = mutate_message(dice, models[name])
        return made

    def trial(folder: Path) -> None:
        MilRunner(folder / "a.mlpackage", spec=None, runtime="mil", precision="", threads=1).prepare(0)()

    return Reader(make=make, trial=trial, read=lambda folder: _open_and_run(folder / "a.mlpackage"))


def mutate_message(dice: random.Random, whole: Any) -> bytes:
    """A protobuf message with a few of its fields replaced, removed, repeated or exchanged, at any depth."""
    message = type(whole)()
    message.CopyFrom(whole)
    for _ in range(1 << dice.randrange(3)):
        holder = dice.choice(list(_messages(message)))
        fields = [descriptor for descriptor, _ in holder.ListFields()] or list(holder.DESCRIPTOR.fields)
        field_of = dice.choice(fields if dice.randrange(8) else list(holder.DESCRIPTOR.fields))
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):  # a value the field cannot hold
            _change_field(dice, holder, field_of)
    return bytes(message.SerializeToString())


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        repeated = not hasattr(value, "ListFields")
        held = value.values() if repeated and hasattr(value, "values") else value if repeated else [value]
        for inner in held:
            if hasattr(inner, "ListFields"):
                yield from _messages(inner)


def _change_field(dice: random.Random, holder: Any, descriptor: Any) -> None:
    name, value = descriptor.name, getattr(holder, descriptor.name)
    if dice.randrange(6) == 0:
        holder.ClearField(name)
    elif hasattr(value, "keys") and len(value):  # a map
        key = dice.choice(sorted(value))
        if hasattr(value[key], "CopyFrom") and dice.randrange(2):
            value[dice.choice((*value, mutate_word(dice, str(key))))].CopyFrom(value[key])
        del value[key]
    elif hasattr(value, "extend"):  # a list
        kept = list(value)
        place = dice.randrange(len(kept)) if kept else 0
        match dice.randrange(4):
            case 0 if kept:
                del value[place]
            case 1 if kept:
                value.extend([kept[place]] * dice.choice((1, 2, 50)))
            case 2 if len(kept) > 1:
                del value[:]
                value.extend(dice.sample(kept, len(kept)))
            case _ if descriptor.message_type is None:
                put = _scalar(dice, kept[place] if kept else 0)
                value.extend([put]) if not kept else value.__setitem__(place, put)
            case _:
                value.add()
    elif descriptor.message_type is not None:
        value.SetInParent()
    else:
        setattr(holder, name, _scalar(dice, value))


def _scalar(dice: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return dice.choice((mutate_word(dice, value), "", "conv", "image", "x" * 3000, "../x", "\u202e"))
    if isinstance(value, bytes):
        return mutate_bytes(dice, value)
    if isinstance(value, float):
        return dice.choice((0.0, -1.0, math.nan, math.inf, 1e30, 1e-40, value * 2))
    odd = (0, 1, -1, 2, 3, 255, 2**16, 2**20, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
    return dice.choice((*odd, int(value) + 1, int(value) - 1, -int(value), dice.randrange(40)))


# -- keys, signatures, scorecards, pairs, stored answers ---------------------------------------------------------------


def _signature() -> Reader:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from targets.signing import MANIFEST, SIGNATURE, private_key, public_key, seal, verify

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    with tempfile.TemporaryDirectory() as name:
        for file, content in {**tiny_bundle(), "MODEL_CARD.md": b"card"}.items():
            (Path(name) / file).write_bytes(content)
        seal(Path(name), key=key)
        files = {f"bundle/{path.name}": path.read_bytes() for path in sorted(Path(name).iterdir())}
    told, signed = f"bundle/{MANIFEST}", f"bundle/{SIGNATURE}"
    manifest = json.loads(files[told])

    def make(dice: random.Random) -> Files:
        made = {**files, "own.pub": public, "own.key": secret}
        kind = dice.randrange(4)
        if kind == 0:  # whoever holds the key may sign anything
            made[told] = _json(dice, manifest)
            made[signed] = key.sign(made[told])
        else:
            name = dice.choice(("own.pub", "own.key", signed, told, "bundle/golden.npz"))
            made[name] = mutate_bytes(dice, made[name])
        return made

    def read(folder: Path) -> object:
        private_key(folder / "own.key")
        verify(folder / "bundle", key=public_key(folder / "own.pub"))
        return None

    return Reader(make=make, read=read, grown=_only("own.pub", {**files, "own.key": secret}))


def _pairs() -> Reader:
    from edgeface.verification import read_pairs

    lines = ["2\t2", "ann 1 2", "bob\t1\t3", "ann 1 bob 2", "ann 2 eve 1", "eve 1 2", "eve 1 3"]
    text = "\n".join([*lines, "eve 1 bob 2", "ann 3 eve 4"]).encode()

    def make(dice: random.Random) -> Files:
        return {"pairs.txt": mutate_bytes(dice, text)}

    return Reader(make=make, read=lambda folder: read_pairs(folder / "pairs.txt"), grown=_only("pairs.txt"))


def _answers() -> Reader:
    from distill.foreign import load_answers, save_answers
    from edgeface.models.network import model_spec
    from edgeface.specs import NetworkSpec, output_spec

    model = model_spec(NetworkSpec(backbone="edge_s", width=0.125, input_px=16), (output_spec("gender"),))
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "answers"
        save_answers(
            folder, model=model, keys=["a", "b", "c"], outputs={"gender": values}, licences=["x"], research_only=False
        )
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = json.loads(files["manifest.json"])
    stored = next(name for name in files if name.endswith(".safetensors"))
    listed = next(name for name in files if name.endswith(".json") and name != "manifest.json")
    archive = npz({"gender": values})
    golden = _golden()

    def make(dice: random.Random) -> Files:
        made = dict(files)
        kind = dice.randrange(5)
        name = stored
        if kind == 0:
            made[stored] = mutate_bytes(dice, made[stored])
        elif kind == 1:
            made[listed] = _json(dice, json.loads(made[listed]))
        elif kind in (2, 3):
            del made[stored]
            name = "answers.npz"
            made[name] = mutate_bytes(dice, archive) if kind == 2 else golden.make(dice)["golden.npz"]
        digests = {file: hashlib.sha256(made[file]).hexdigest() for file in (name, listed)}
        tree = {**manifest, "files": digests}
        made["manifest.json"] = _json(dice, tree) if kind == 4 else json.dumps(tree).encode()
        return made

    return Reader(make=make, read=load_answers, grown=_only("manifest.json", files))


def _shards() -> Reader:
    """Tar shards, with an index file and without; headers are changed with their checksums put right."""
    import tarfile
    from unittest import mock

    from edgeface.data.pack import ENVIRONMENT
    from edgeface.data.shards import index_file, survey, write_index
    from edgeface.data.sources import open_source

    picture = pictures_of_all_kinds()["rgb.png"]
    told = [
        {"key": "a", "person": "ann", "crop": [16.0, 16.0, 20.0], "labels": {"gender": 1, "age": [20, 29]}},
        {"box": [1, 2, 20, 20], "gender": "male", "landmarks5": [[10, 12], [30, 12], [20, 20], [12, 30], [28, 30]]},
        {"labels": {"attributes": [1, 0, None, 0], "beauty_score": 0.5, "identity": 3}, "groups": {"skin": "dark"}},
    ]
    kinds = [bytes([value]) for value in b"01234567DKLMSVgx\0Z"]
    names = ["../x.png", "/x.png", "0.png", "a/0.png", "C:\\x.png", ".", "0", ".png", "x" * 99, "0.gender.cls", "0.cls"]

    def tar(dice: random.Random) -> bytes:
        form = dice.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        parts = []
        for number, tree in enumerate(told):
            document = _json(dice, mutate_tree(dice, tree)) if dice.randrange(3) == 0 else json.dumps(tree).encode()
            for name, content in ((f"{number}.png", picture), (f"{number}.json", document)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if dice.randrange(12) == 0:
                    member.name = dice.choice(names)
                if dice.randrange(16) == 0:
                    member.type, member.linkname = dice.choice(kinds), "../secret"
                if dice.randrange(16) == 0:
                    member.size = dice.choice((0, 1, 511, 513, 1 << 20, 8**11 - 1))
                if dice.randrange(12) == 0:
                    member.pax_headers = {
                        dice.choice(("path", "size", "GNU.sparse.size", "comment")): dice.choice(names)
                    }
                header = bytearray(member.tobuf(form))
                if dice.randrange(12) == 0:
                    header = bytearray(mutate_bytes(dice, bytes(header)))
                    if len(header) >= 512:
                        header[148:156] = b" " * 8
                        header[148:156] = b"%06o\0 " % sum(header[:512])
                parts.append(bytes(header) + content + bytes(-len(content) % 512))
        whole = b"".join([*parts, bytes(1024)])
        return mutate_bytes(dice, whole) if dice.randrange(4) == 0 else whole

    def make(dice: random.Random) -> Files:
        files = {"train-0.tar": tar(dice)}
        if dice.randrange(3) == 0:
            files["index"] = str(dice.randrange(2**32)).encode()  # stands for an index file that fits, then is changed
        return files

    def read(folder: Path) -> object:
        index = index_file(folder, "train")
        index.unlink(missing_ok=True)
        with mock.patch.dict(os.environ, {ENVIRONMENT: str(folder / "cache")}):
            try:
                if (folder / "index").is_file():
                    write_index(index, survey(folder / "train-0.tar"), key="")
                    dice = random.Random((folder / "index").read_bytes())
                    if dice.randrange(2):
                        index.write_bytes(_json(dice, mutate_tree(dice, json.loads(index.read_bytes()))))
                corpus = open_source(f"webdataset:{folder}@train", root=folder)
                return [corpus.load(place).shape for place in range(len(corpus))]
            finally:
                shutil.rmtree(folder / "cache", ignore_errors=True)

    return Reader(make=make, read=read)


# -- runs, sweeps, databases -------------------------------------------------------------------------------------------


def _step() -> Reader:
    """Step checkpoints, read by the training that goes on from them."""
    import torch
    from torch import Tensor, nn

    from distill.train import train
    from edgeface.specs import TrainSpec

    torch.set_num_threads(1)
    spec = TrainSpec(epochs=1, batch=2, lr=1e-3, warmup_epochs=0.0, ema=0.9, checkpoint_s=1e-9)

    @dataclass
    class Batch:
        images: Tensor
        labels: dict[str, Tensor]
        ids: Tensor

    class Batches:
        steps_per_epoch = 2

        def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
            for _ in range(start_step, self.steps_per_epoch):
                yield Batch(torch.ones(2, 3, 4, 4), {"y": torch.ones(2)}, torch.arange(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(48, 1)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"y": self.head(self.norm(images).flatten(1)).squeeze(1)}

    def loss(outputs: Any, images: Tensor, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total = (outputs["y"] - labels["y"]).square().mean()
        return total, {"y": total}

    def go_on(folder: Path, spec: TrainSpec) -> object:
        torch.manual_seed(0)
        return train(
            Net(),
            loss,
            Batches(),
            spec=spec,
            seed=0,
            key="k",
            partial=folder / "stage.partial",
            input_px=4,
            watch=lambda network: {"y.score": 0.5},
        )

    with tempfile.TemporaryDirectory() as name:
        go_on(Path(name), spec)
        files = {path.name: path.read_bytes() for path in sorted((Path(name) / "stage.partial").iterdir())}
    told, weights = json.loads(files["state.json"]), files["state.safetensors"]
    (length,) = struct.unpack("<Q", weights[:8])
    header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]

    def embed(content: bytes) -> Files:
        return {"stage.partial/state.json": content, "stage.partial/state.safetensors": weights}

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind < 2:
            return embed(_json(dice, told))
        if kind == 2:
            content = mutate_bytes(dice, weights)
        else:
            words = _json(dice, header)
            content = struct.pack("<Q", len(words)) + words + body
        digest = {"sha256": hashlib.sha256(content).hexdigest()} if dice.randrange(8) else {}
        return {
            "stage.partial/state.json": json.dumps({**told, **digest}).encode(),
            "stage.partial/state.safetensors": content,
        }

    quiet = TrainSpec(epochs=1, batch=2, lr=1e-3, warmup_epochs=0.0, ema=0.9, checkpoint_s=1e9)
    grown = Grown(embed=embed, taken=lambda files: files["stage.partial/state.json"])
    return Reader(make=make, read=lambda folder: go_on(folder, quiet), grown=grown)


def _faces() -> Reader:
    """The recipe and the digests that a run keeps of itself, as `--resume` reads them."""
    from edgeface.runs import begin

    text = 'name = "tiny"\nthreads = 1\n'
    faces, validation = {"mtfl@train": "ab" * 32, "folder:x@train": "cd" * 32}, {"mtfl@val": "ef" * 32}
    with tempfile.TemporaryDirectory() as name:
        begin(Path(name), text, faces=faces, validation=validation)
        files = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
    kept = json.loads(files["faces.json"])

    def make(dice: random.Random) -> Files:
        if dice.randrange(8) == 0:
            return {**files, "recipe.toml": mutate_bytes(dice, files["recipe.toml"])}
        return {**files, "faces.json": _json(dice, kept)}

    def read(folder: Path) -> object:
        begin(folder, text, faces=faces, validation=validation)
        return None

    return Reader(make=make, read=read, grown=_only("faces.json", files))


def _trial() -> Reader:
    """The result of a sweep's trial, and what a sweep makes of it."""
    from edgeface.report.pareto import csv_text, with_fronts
    from edgeface.sweep.trials import Combination, load_result, rows_of

    combination = Combination(student="edge_s", width=0.25, input_px=16)
    metrics = {"gender": "accuracy", "landmarks5": "nme_percent"}
    file = {
        "precision": "w8a8",
        "file": "out/android/edge_s.w8a8.tflite",
        "sha256": "ab" * 32,
        "runtime": "tflite-xnnpack",
        "latency_ms": 0.003,
        "size_bytes": 35552,
        "macs": 130880,
        "tasks": {"gender": {"accuracy": 0.5, "n": 32.0}, "landmarks5": {"nme_percent": 35.5, "n": 32.0}},
    }
    whole = {
        "schema": 1,
        "key": "k",
        "student": "edge_s",
        "width": 0.25,
        "input_px": 16,
        "state": "DONE",
        "reason": "",
        "machine": {"host": "x"},
        "seconds": 0.5,
        "checkpoint": "ab" * 32,
        "files": [file, {**file, "macs": None}],
    }

    def make(dice: random.Random) -> Files:
        return {"result.json": _json(dice, whole)}

    def read(folder: Path) -> object:
        found = load_result(folder / "result.json", key="k")
        if found is None:
            return None
        rows = rows_of(found, combination, folder=Path("trials/x"))
        return csv_text(with_fronts(rows, tasks=metrics, cost="size_bytes"), tasks=metrics)

    return Reader(make=make, read=read, grown=_only("result.json"))


def _database() -> Reader:
    """AFLW's SQLite file: its pages changed, or its rows and tables."""
    import sqlite3

    from edgeface.data import aflw

    tables = {
        "Faces": "face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT",
        "FaceImages": "image_id INTEGER PRIMARY KEY, file_id TEXT, filepath TEXT",
        "FaceRect": "face_id INTEGER PRIMARY KEY, x REAL, y REAL, w REAL, h REAL",
        "FacePose": "face_id INTEGER PRIMARY KEY, roll REAL, yaw REAL",
        "FaceMetaData": "face_id INTEGER PRIMARY KEY, sex TEXT, occluded INTEGER, glasses INTEGER",
        "FeatureCoords": "face_id INTEGER, feature_id INTEGER, x REAL, y REAL",
    }
    schema = "".join(f"CREATE TABLE {name} ({columns});" for name, columns in tables.items())
    points = ((3, 4), (7, 4), (5, 6), (4, 8), (6, 8))
    rows: list[tuple[str, tuple[Any, ...]]] = []
    for face in range(4):
        rows += [("Faces", (face, f"{face}.png", "aflw")), ("FaceImages", (face, f"{face}.png", f"0/{face}.png"))]
        rows += [("FaceRect", (face, 1, 1, 9.5, 9)), ("FacePose", (face, 0.0, 0.3 * face))]
        rows += [("FaceMetaData", (face, "mf"[face % 2], 0, 1))]
        rows += [("FeatureCoords", (face, name, *point)) for name, point in zip(aflw.FIVE, points, strict=True)]
    pictures = {f"flickr/0/{face}.png": pictures_of_all_kinds()["rgb.png"] for face in range(4)}
    odd = (
        None,
        "",
        "x",
        -1,
        0,
        2**62,
        -(2**62),
        1e308,
        -1e999,
        b"\xff\0",
        "a" * 70_000,
        "../x",
        "²",
        1,
        0.5,
        "0/1.png",
    )
    endless = "WITH RECURSIVE n(face_id) AS (SELECT 1 UNION ALL SELECT face_id + 1 FROM n) SELECT * FROM n"
    changes = (
        *(f"DROP TABLE {name}" for name in tables),
        *(f"DROP TABLE {name}; CREATE VIEW {name} AS {endless}" for name in tables),
        *(f"ALTER TABLE {name} ADD COLUMN c AS (hex(zeroblob(1000000)))" for name in tables),
        *(f"ALTER TABLE {name} RENAME COLUMN face_id TO id" for name in ("Faces", "FaceRect", "FeatureCoords")),
        *("UPDATE Faces SET file_id = 'a'", "UPDATE FaceImages SET file_id = 'a', filepath = NULL"),
        *("PRAGMA encoding = 'UTF-16le'", "PRAGMA user_version = 5", "PRAGMA journal_mode = WAL"),
        "CREATE TRIGGER t AFTER INSERT ON Faces BEGIN DELETE FROM Faces; END",
    )

    def made(entries: Sequence[tuple[str, tuple[Any, ...]]], change: str = "") -> bytes:
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
            database.execute(f"PRAGMA page_size = {1024}")
            database.executescript(schema)
            for name, values in entries:
                with contextlib.suppress(sqlite3.Error, OverflowError):
                    database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values))})", values)
            with contextlib.suppress(sqlite3.Error):
                database.executescript(change)
            return database.serialize()

    plain = made(rows)

    def make(dice: random.Random) -> Files:
        kind = dice.randrange(4)
        if kind == 0:
            content = mutate_bytes(dice, plain)
        elif kind == 1:
            content = made(rows, dice.choice(changes))
        else:
            entries = list(rows)
            for _ in range(1 << dice.randrange(3)):
                at = dice.randrange(len(entries))
                name, values = entries[at]
                place_of = dice.randrange(len(values))
                entries[at] = (name, (*values[:place_of], dice.choice(odd), *values[place_of + 1 :]))
            content = made(entries)
        return {**pictures, "aflw.sqlite": content}

    def read(folder: Path) -> object:
        content = (folder / "aflw.sqlite").read_bytes() or b"\0"
        split = ("train", "fit", "dev", "test")[content[-1] % 4]
        corpus = aflw.read(folder, source=f"aflw@{split}", split=split)
        return [corpus.load(index).shape for index in range(len(corpus))]

    return Reader(make=make, read=read, grown=_only("aflw.sqlite", pictures))


def mat_element(kind: int, content: bytes, *, size: int | None = None) -> bytes:
    """An element of a .mat file; `size` is what it claims to hold."""
    return struct.pack("<II", kind, len(content) if size is None else size) + content + bytes(-len(content) % 8)


def mat_matrix(kind: int, sizes: Sequence[int], content: bytes, *, name: bytes = b"") -> bytes:
    """An array of a .mat file, of that class and those sizes, over its own elements."""
    head = mat_element(6, struct.pack("<II", kind, 0)) + mat_element(5, struct.pack(f"<{len(sizes)}i", *sizes))
    return mat_element(14, head + mat_element(1, name) + content)


def mat_numbers(*values: float) -> bytes:
    return mat_matrix(6, (1, len(values)), mat_element(9, np.array(values, "<f8").tobytes()))


def mat_text(words: str) -> bytes:
    return mat_matrix(4, (1, len(words)), mat_element(16, words.encode()))


def mat_entry(name: bytes, box: bytes) -> bytes:
    """One face of 300-W's detections."""
    names = b"".join(word.ljust(32, b"\0") for word in (b"imgName", b"bb_detector"))
    return mat_matrix(2, (1, 1), mat_element(5, struct.pack("<i", 32)) + mat_element(1, names) + name + box)


def mat_list(*entries: bytes, count: int | None = None) -> bytes:
    """The list of them; `count` is how many it claims to hold."""
    sizes = (1, len(entries) if count is None else count)
    return mat_matrix(1, sizes, b"".join(entries), name=b"bounding_boxes")


def mat_packed(content: bytes) -> bytes:
    """An element, compressed."""
    squeezed = zlib.compress(content)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


MAT_HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"


def _mat() -> Reader:
    from edgeface.data.w300 import read_boxes

    faces = [mat_entry(mat_text(name), mat_numbers(1, 2, 30.5, 40)) for name in ("a.png", "b.png", "c.png")]
    whole = mat_list(*faces)

    def embed(content: bytes) -> Files:
        return {"Bounding Boxes/bounding_boxes_ibug.mat": content}

    def make(dice: random.Random) -> Files:
        content = whole
        if dice.randrange(4) == 0:
            data = bytearray(whole)  # tags, sizes and numbers stand on multiples of four
            for _ in range(1 << dice.randrange(3)):
                at = 4 * dice.randrange(len(data) // 4)
                (now,) = struct.unpack_from("<I", data, at)
                near = (
                    now + 1,
                    now - 1,
                    now + 8,
                    now * 2,
                    0,
                    1,
                    14,
                    15,
                    2**31 - 1,
                    2**32 - 1,
                    dice.randrange(len(data)),
                )
                struct.pack_into("<I", data, at, dice.choice(near) % 2**32)
            content = bytes(data)
        elif dice.randrange(2):
            content = mutate_bytes(dice, whole)
        kind = dice.randrange(6)
        if kind == 0:
            return embed(mutate_bytes(dice, MAT_HEAD + mat_packed(content)))
        return embed(MAT_HEAD + (mat_packed(content) if kind < 3 else content))

    grown = Grown(embed=embed, taken=lambda files: files["Bounding Boxes/bounding_boxes_ibug.mat"])
    return Reader(make=make, read=lambda folder: read_boxes(folder, ("ibug",), source="w300"), grown=grown)


READERS: dict[str, Callable[[], Reader]] = {
    "recipe": _recipe,
    "metadata": _metadata,
    "labels": _labels,
    "image": _image,
    "checkpoint": _checkpoint,
    "bundle": _bundle,
    "tflite": _tflite,
    "golden": _golden,
    "result": _result,
    "description": _description,
    "signature": _signature,
    "pairs": _pairs,
    "answers": _answers,
    "shards": _shards,
    "step": _step,
    "faces": _faces,
    "trial": _trial,
    "database": _database,
    "mat": _mat,
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "mil": _mil,
}


# -- the loop ----------------------------------------------------------------------------------------------------------


def make_input(name: str, *, seed: int, index: int) -> Files:
    """The files of one input; the same for the same arguments."""
    return READERS[name]().make(random.Random(f"{name}:{seed}:{index}"))


def place(folder: Path, files: Files, *, known: set[str]) -> None:
    """Write an input into a folder in place of the one before it."""
    for name in known - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        path = folder / name
        if name not in known and "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    known.clear()
    known.update(files)


def signature(error: BaseException) -> str:
    """What tells one fault from another: the exception's type and the innermost line of edgeface."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(f"/{package}/" in frame.filename for package in ("edgeface", "distill", "quantize", "targets"))
        and "site-packages" not in frame.filename
    ]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} {last.name}"


def _printable(text: str) -> bool:
    """False for an error whose words a terminal cannot show, which is a failure of the error itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _alarm(number: int, frame: object) -> None:
    raise SlowError(f"more than {SLOW_S:g} s of CPU time")


def fuzz(
    name: str, *, inputs: int, seed: int = 0, jobs: int = 1, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Read that many hostile inputs.

    Args:
        name: One of READERS.
        inputs: How many.
        seed: With an input's number, decides it.
        jobs: Processes that share them; each says what it finds on stderr.
        told: Called with each fault and every ten thousand inputs, where one process reads all.

    Returns:
        A row: inputs, how many were read whole and how many refused, seconds, the slowest input, and what was found.
    """
    if jobs == 1:
        return _count(name, range(inputs), seed=seed, told=told).row()
    begin = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=live_with_parent) as pool:
        parts = [pool.submit(_count, name, range(first, inputs, jobs), seed=seed, told=_tell) for first in range(jobs)]
        whole, *others = (part.result() for part in parts)
    for other in others:
        whole.take_in(other)
    whole.told, whole.begin = told, begin
    return whole.row()


def _count(name: str, indices: Sequence[int], *, seed: int, told: Callable[[str], None]) -> _Count:
    reader = READERS[name]()
    count = _Count(name=name, engine="mutation", seed=seed, told=told)
    read = _read_each if reader.trial is None else _read_each_apart
    with _scratch() as folder, _alarmed():
        outcomes = read(reader, folder, [f"{name}:{seed}:{index}" for index in indices])
        for index, (outcome, took) in zip(indices, outcomes, strict=True):
            count.add(outcome, f"{seed}:{index}", took=took)
    return count


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: "accepted", "refused", "ended" (in its trial, by a signal or a limit) or "found".
        case: What was found, the same words for the same fault.
        said: The error's.
    """

    kind: str
    case: str = ""
    said: str = ""


@dataclass(kw_only=True)
class _Count:
    """Outcomes on their way into a row."""

    name: str
    engine: str
    seed: int
    told: Callable[[str], None]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_at: str = ""
    begin: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome, at: str, *, took: float) -> None:
        self.kinds[outcome.kind] += 1
        if outcome.kind == "found":
            case = self.found.setdefault(outcome.case, {"case": outcome.case, "first": at, "count": 0})
            case["count"] += 1
            if case["count"] == 1:
                self.told(f"{self.name} {at}: {outcome.case}: {outcome.said}")
        if took > self.slowest:
            self.slowest, self.slowest_at = took, at
        if (inputs := self.kinds.total()) % 10_000 == 0:
            seconds = time.monotonic() - self.begin
            self.told(f"{self.name}: {inputs:,} inputs, {len(self.found)} found, {seconds:.0f} s")

    def take_in(self, other: _Count) -> None:
        """Add what another process counted."""
        self.kinds += other.kinds
        for case in other.found.values():
            own = self.found.setdefault(case["case"], {**case, "count": 0})
            own["count"] += case["count"]
            own["first"] = min(own["first"], case["first"], key=lambda at: int(at.partition(":")[2]))
        if other.slowest > self.slowest:
            self.slowest, self.slowest_at = other.slowest, other.slowest_at

    def row(self) -> dict[str, Any]:
        return {
            "reader": self.name,
            "inputs": self.kinds.total(),
            "seed": self.seed,
            "engine": self.engine,
            "accepted": self.kinds["accepted"],
            "refused": self.kinds["refused"] + self.kinds["ended"],
            "ended": self.kinds["ended"],
            "seconds": round(time.monotonic() - self.begin, 1),
            "slowest_ms": round(1000 * self.slowest, 1),
            "slowest": self.slowest_at,
            "found": sorted(self.found.values(), key=lambda case: case["first"]),
        }


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _alarmed() -> Iterator[None]:
    warnings.simplefilter("ignore")  # Pillow's about odd Exif blocks; they are no failures
    before = signal.signal(signal.SIGVTALRM, _alarm)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def _read(reader: Reader, folder: Path) -> Outcome:
    signal.setitimer(signal.ITIMER_VIRTUAL, SLOW_S)
    try:
        reader.read(folder)
    except EdgefaceError as error:
        return Outcome(kind="refused") if _printable(str(error)) else Outcome(kind="found", case="UnicodeEncodeError")
    except (Exception, SlowError) as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        return Outcome(kind="found", case=signature(error), said=str(error)[:200])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    return Outcome(kind="accepted")


def _read_each(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """Each input's outcome and its seconds of CPU time."""
    known = set[str]()
    for seed in dice:
        place(folder, reader.make(random.Random(seed)), known=known)
        start = time.process_time()
        outcome = _read(reader, folder)
        yield outcome, time.process_time() - start


def _read_each_apart(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """The same after a trial, in processes that the native code may end; a new one goes on after the input that did."""
    done = 0
    while done < len(dice):
        for found in _served(reader, folder, dice[done : done + SERVED]):
            yield found
            done += 1


def _served(reader: Reader, folder: Path, dice: Sequence[str]) -> Iterator[tuple[Outcome, float]]:
    """Outcomes of one process, up to and with that of an input which ended it."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            _serve(reader, folder, dice, sender)
        finally:  # whatever happens, this copy of the process must not tidy up what belongs to the first
            os._exit(0)
    os.close(sender)
    answered, tried, rest = 0, False, b""
    with os.fdopen(receiver, "rb", buffering=0) as answers:
        while answered < len(dice):
            part = answers.read(1 << 16) if select.select([answers], [], [], WAIT_S)[0] else b""
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                tried = line == b"tried"
                if not tried:
                    answer = json.loads(line)
                    yield Outcome(**answer["outcome"]), answer["took"]
                    answered += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answered < len(dice):
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        case = f"ended by {how} after its trial"
        yield Outcome(kind="found", case=case) if tried else Outcome(kind="ended", case=how), 0.0


def _serve(reader: Reader, folder: Path, dice: Sequence[str], sender: int) -> None:
    assert reader.trial is not None
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    known = set[str]()
    for seed in dice:
        place(folder, reader.make(random.Random(seed)), known=known)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SLOW_S)  # ends native code too, which no handler of Python's interrupts
        try:
            reader.trial(folder)
        except BaseException:
            outcome = Outcome(kind="refused")
        else:
            os.write(sender, b"tried\n")
            signal.setitimer(signal.ITIMER_PROF, 2 * SLOW_S)
            outcome = _read(reader, folder)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        answer = {"outcome": vars(outcome), "took": time.monotonic() - start}
        os.write(sender, json.dumps(answer).encode() + b"\n")


def grow(name: str, *, inputs: int, seed: int, done: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Read inputs that libFuzzer grows by the coverage of edgeface's readers; ends the process.

    Args:
        name: Of a reader with `grown`.
        inputs: How many.
        seed: Of libFuzzer's generator; from one run to the next coverage differs a little, and so do its inputs.
        done: Called with the row.
    """
    import atheris

    scratch = contextlib.ExitStack()
    folder, corpus = scratch.enter_context(_scratch()), scratch.enter_context(_scratch())
    scratch.enter_context(_alarmed())
    known = set[str]()
    # tomllib and the readers themselves; what numpy and torch do inside is not theirs to lead.
    with atheris.instrument_imports(include=["edgeface", "distill", "quantize", "targets", "tomllib"]):
        reader = READERS[name]()
        for index in range(30):  # readers import what they need as they go
            place(folder, reader.make(random.Random(f"{name}:{seed}:{index}")), known=known)
            _read(reader, folder)
    grown = reader.grown
    if grown is None:
        sys.exit(f"{name}: native code reads it, where coverage of Python leads nowhere")
    count = _Count(name=name, engine="coverage", seed=seed, told=_tell)
    for index in range(300):
        (corpus / str(index)).write_bytes(grown.taken(reader.make(random.Random(f"{name}:{seed}:{index}"))))

    def one(content: bytes) -> None:
        place(folder, grown.embed(content), known=known)
        start = time.process_time()
        outcome = _read(reader, folder)
        count.add(outcome, hashlib.sha256(content).hexdigest()[:12], took=time.process_time() - start)
        if outcome.kind == "found" and count.found[outcome.case]["count"] == 1:
            Path(f"found-{name}-{len(count.found)}").write_bytes(content)
        if count.kinds.total() == inputs:
            done(count.row())
            scratch.close()
            sys.stdout.flush()
            os._exit(1 if count.found else 0)  # libFuzzer offers no other end

    options = [f"-seed={seed + 1}", "-rss_limit_mb=0", "-timeout=120", "-verbosity=0", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ended before its last input")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| reader | engine | inputs | read | refused | of these, ended in a trial | found | slowest, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['reader']} | {row['engine']} | {row['inputs']:,} | {row['accepted']:,} | {row['refused']:,} "
            f"| {row['ended']:,} | {len(row['found'])} | {row['slowest_ms']:.0f} |"
        )
    return "\n".join(lines)


WORDS = """# Hostile files

`python -m benchmarks.fuzz all --inputs 100000`; conditions, and the commit, date and seconds of each row, in the JSON.
Each input of the engine "mutation" is a mutation of a whole file, with lengths, checksums and digests put right often
enough that the readers behind them are reached; those of "coverage" (`--engine coverage`, atheris) are grown from such
mutations by libFuzzer, led by the branches of edgeface's own readers. "Read" inputs were taken for whole (a flipped bit
in a pixel is one), "refused" ones ended in an error of edgeface's own, and "found" counts distinct failures of any
other kind: an exception, more than 10 s of CPU time or 6 GiB of address space. "Ended in a trial" are model files that
took their process down, by a signal or a limit, in the trial that `docs/security.md` describes: for a user an error
that names the file. Times are CPU time, and for files that are tried in a process of their own wall time, fork
included. The machine was busy.
"""


def record(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into the recorded ones, each in the place of an earlier one of its reader and engine.

    A row has its own commit and date. Of rows recorded before there were such, they are unknown.
    """
    from edgeface.files import write_bytes, write_json
    from edgeface.provenance import cpu, versions

    earlier = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    kept = {(row["reader"], row["engine"]): row for row in (*earlier, *rows)}
    unknown = {"commit": "unknown", "date": "unknown"}
    ordered = [{**unknown, **kept[key]} for key in sorted(kept, key=lambda key: (list(READERS).index(key[0]), key[1]))]
    conditions = {"machine": cpu(), "versions": versions(), "threads": 1, "nice": os.nice(0)}
    write_json(out, {"schema": 1, "rows": ordered, "conditions": conditions})
    write_bytes(out.with_suffix(".md"), f"{WORDS}\n{markdown(ordered)}\n".encode())


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    from edgeface.provenance import commit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=(*READERS, "all"), help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the inputs")
    parser.add_argument("--engine", choices=("mutation", "coverage"), default="mutation")
    parser.add_argument("--out", type=Path, default=None, help="default: print alone")
    parser.add_argument("--again", metavar="SEED:INDEX", help="write one input instead of reading many")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-case"))
    options = parser.parse_args()
    names = list(READERS) if "all" in options.names else options.names
    if options.again:
        seed, index = map(int, options.again.split(":"))
        shutil.rmtree(options.keep, ignore_errors=True)
        options.keep.mkdir(parents=True)
        place(options.keep, make_input(names[0], seed=seed, index=index), known=set())
        print(READERS[names[0]]().read(options.keep))
        return

    begun = {"commit": commit(), "date": datetime.date.today().isoformat()}  # of the code that is read now

    def done(row: dict[str, Any]) -> None:
        if options.out is not None:
            record(options.out, [{**row, **begun}])
        print(markdown([row]), flush=True)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if options.engine == "coverage":
        if len(names) != 1:
            parser.error("--engine coverage takes one reader: libFuzzer ends with the process")
        grow(names[0], inputs=options.inputs, seed=options.seed, done=done)
    failed = False
    for name in names:
        row = fuzz(name, inputs=options.inputs, seed=options.seed, jobs=options.jobs, told=_tell)
        done(row)
        failed |= bool(row["found"])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
