"""What `edgeface data` finds in a source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.data.inspect import inspect
from edgeface.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six rows: a repeated picture, a truncated one, a missing one, one person on both sides, one mirrored label."""
    from PIL import Image

    path = tmp_path / "faces"
    path.mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("a", 16), ("b", 16), ("d", 24), ("torn", 64)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path / f"{name}.png")
    (path / "c.png").write_bytes((path / "a.png").read_bytes())
    whole = (path / "torn.png").read_bytes()
    (path / "torn.png").write_bytes(whole[: len(whole) // 2])
    points = "x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"
    good, swapped = "4,4,12,4,8,8,5,12,11,12", "12,4,4,4,8,8,5,12,30,12"
    (path / "metadata.csv").write_text(
        f"file_name,split,person,smile,{points}\n"
        f"a.png,train,ann,1,{good}\n"
        f"b.png,train,bob,0,{swapped}\n"
        f"c.png,train,cid,1,{good}\n"
        f"torn.png,train,dan,1,{good}\n"
        f"gone.png,train,eve,1,{good}\n"
        f"d.png,test,ann,,{',' * 9}\n"
    )
    return path


def test_inspect_counts_labels_pictures_and_faults(folder: Path) -> None:
    found = inspect(f"folder:{folder}@train", root=folder)
    assert found["samples"] == 4
    assert found["people"] == 4
    assert found["skipped"]["missing picture"]["count"] == 1
    assert found["unreadable"]["count"] == 1
    assert "torn.png" in found["unreadable"]["keys"][0]
    assert found["named"] == 4
    assert found["duplicates"] == {"count": 1, "keys": ["c.png = a.png"]}
    assert found["disagreeing"]["count"] == 0
    assert found["sizes"] == {"16x16": 3}
    assert found["tasks"]["smile"] == {"labelled": 4, "classes": {"not_smiling": 0.25, "smiling": 0.75}}
    assert found["tasks"]["landmarks5"] == {"labelled": 4, "mirrored_eyes": 1, "outside_crop": 1}
    assert found["shared_people"]["test"] == 1
    assert found["shared_pictures"]["test"] == {"count": 0, "keys": []}


def test_a_picture_in_two_splits_and_one_with_two_labels_are_found(folder: Path) -> None:
    (folder / "c.png").write_bytes((folder / "d.png").read_bytes())
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    found = inspect(f"folder:{folder}@train", root=folder)
    assert found["shared_pictures"]["test"] == {"count": 1, "keys": ["c.png"]}
    assert found["disagreeing"] == found["duplicates"] == {"count": 1, "keys": ["b.png = a.png"]}


def test_one_pixel_makes_another_picture_twin(folder: Path) -> None:
    from PIL import Image

    with Image.open(folder / "d.png") as picture:
        picture.putpixel((0, 0), (picture.getpixel((0, 0))[0] ^ 1, 0, 0))
        picture.save(folder / "c.png")
    assert inspect(f"folder:{folder}@train", root=folder)["shared_pictures"]["test"]["count"] == 0


def test_the_verb_says_what_it_looked_for_and_did_not_find(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", f"folder:{folder}@test"]) == 0
    assert "None is unreadable, none repeats another." in capsys.readouterr().out
    assert main(["data", "inspect", f"folder:{folder}@train"]) == 0
    assert "None is" not in capsys.readouterr().out, "the twin: there is one of each"


def test_inspect_of_clean_pictures_finds_no_fault(folder: Path) -> None:
    found = inspect(f"folder:{folder}@test", root=folder, strict=True)
    assert found["duplicates"]["count"] == found["unreadable"]["count"] == 0
    assert not found["skipped"]
    assert found["tasks"]["landmarks5"] == {"labelled": 0}


def test_strict_inspect_raises_at_the_first_fault(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        inspect(f"folder:{folder}@train", root=folder, strict=True)


def test_bins_scales_and_groups_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text(
        "image,split,beauty_1to10,gender,ethnicity\n"
        "images/a.png,train,1.9,male,black\n"
        "images/b.png,train,7.3,female,asian\n"
    )
    for name, level in (("a", 10), ("b", 20)):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / f"images/{name}.png")
    assert main(["data", "inspect", f"mebeauty:{tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 faces, whose people are not named" in out
    assert "0.1 to 0.7, mean 0.4 (1.9 to 7.3 on the corpus's scale of 1 to 10)" in out
    assert "black 50.0 %" in out


def test_ages_that_are_bins_are_counted_bin_by_bin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    ages = ["20-29", "20-29", "3-9", "41"]
    (tmp_path / "metadata.csv").write_text(
        "file_name,age\n" + "".join(f"{place}.png,{age}\n" for place, age in enumerate(ages))
    )
    for place in range(len(ages)):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / f"{place}.png")
    found = inspect(f"folder:{tmp_path}", root=tmp_path)["tasks"]["age"]
    assert found["bins"] == {"3-9": 1, "20-29": 2}
    assert found["exact"] == 1
    assert main(["data", "inspect", f"folder:{tmp_path}"]) == 0
    assert "3-9 25.0 %, 20-29 50.0 %, exact years 25.0 %" in " ".join(capsys.readouterr().out.split())


def test_the_verb_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", f"folder:{folder}@train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(f"folder:{folder}@train", root=folder)


def test_the_verb_prints_a_table_and_the_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", f"folder:{folder}@train", str(folder.parent / "found.json")]) == 0
    out = capsys.readouterr().out
    for words in ("4 faces of 4 people", "missing picture: gone.png", "1 with mirrored eyes", "smiling 75.0 %"):
        assert words in out
    assert json.loads((folder.parent / "found.json").read_text())["samples"] == 4


def test_the_verb_packs_and_clears(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert main(["data", "pack", f"folder:{folder}@train", str(out), "--px", "8", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["samples"] == 3
    assert {reason: found["count"] for reason, found in answer["skipped"].items()} == {
        "missing picture": 1,
        "undecodable picture": 1,
    }
    assert np.load(out / "images.npy").shape == (3, 8, 8, 3)
    assert main(["data", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 0
    assert not (tmp_path / "cache" / "packs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "mtlf"],
        ["inspect", "folder:/nowhere/at/all"],
        ["pack", "mtfl", "--px", "0"],
        ["pack", "mtfl", "--margin", "9"],
        ["inspect"],
        [],
    ],
)
def test_a_bad_command_line_ends_with_2_and_no_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_strict_pack_ends_with_2(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    assert main(["data", "pack", f"folder:{folder}@train", "--strict"]) == 2
