"""Inputs for the readers of labels: metadata.csv, the lists of the corpora, pairs."""

from __future__ import annotations

import contextlib
import csv
import io
import random
from pathlib import Path

from benchmarks.fuzz.mutate import any_value, mutate_bytes, mutate_word
from benchmarks.fuzz.pictures import pictures_of_all_kinds
from benchmarks.fuzz.reader import Files, Grown, Reader, only


def metadata_reader() -> Reader:
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
                row[at:at] = [str(any_value(dice))]
            elif kind == 1:
                del row[at : at + dice.choice((1, 5))]
            elif kind == 2:
                for line in table:
                    del line[at : at + 1]
            elif row:
                row[at] = str(any_value(dice)) if dice.randrange(2) else mutate_word(dice, row[at])
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

    return Reader(make=make, read=read, grown=only("metadata.csv", pictures))


def labels_reader() -> Reader:
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
            words[dice.randrange(len(words))] = str(any_value(dice)).encode("utf-8", "replace")
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


def pairs_reader() -> Reader:
    from edgeface.verification import read_pairs

    lines = ["2\t2", "ann 1 2", "bob\t1\t3", "ann 1 bob 2", "ann 2 eve 1", "eve 1 2", "eve 1 3"]
    text = "\n".join([*lines, "eve 1 bob 2", "ann 3 eve 4"]).encode()

    def make(dice: random.Random) -> Files:
        return {"pairs.txt": mutate_bytes(dice, text)}

    return Reader(make=make, read=lambda folder: read_pairs(folder / "pairs.txt"), grown=only("pairs.txt"))
