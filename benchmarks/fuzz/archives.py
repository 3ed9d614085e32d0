"""Inputs for the readers of corpora in one file: tar shards, AFLW's database, 300-W's boxes of MATLAB."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.mutate import mutate_bytes, mutate_tree, mutated_json
from benchmarks.fuzz.pictures import pictures_of_all_kinds
from benchmarks.fuzz.reader import Files, Grown, Reader, only


def shards_reader() -> Reader:
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
            document = (
                mutated_json(dice, mutate_tree(dice, tree)) if dice.randrange(3) == 0 else json.dumps(tree).encode()
            )
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
                        index.write_bytes(mutated_json(dice, mutate_tree(dice, json.loads(index.read_bytes()))))
                corpus = open_source(f"webdataset:{folder}@train", root=folder)
                return [corpus.load(place).shape for place in range(len(corpus))]
            finally:
                shutil.rmtree(folder / "cache", ignore_errors=True)

    return Reader(make=make, read=read)


def database_reader() -> Reader:
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

    return Reader(make=make, read=read, grown=only("aflw.sqlite", pictures))


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


def mat_reader() -> Reader:
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
