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
    assert found["duplicates"] == {"count": 1, "keys": ["c.png"]}
    assert found["sizes"] == {"16x16": 3}
    assert found["tasks"]["smile"] == {"labelled": 4, "classes": {"not_smiling": 0.25, "smiling": 0.75}}
    assert found["tasks"]["landmarks5"] == {"labelled": 4, "mirrored_eyes": 1, "outside_crop": 1}
    assert found["shared_people"]["test"] == 1


def test_inspect_of_clean_pictures_finds_no_fault(folder: Path) -> None:
    found = inspect(f"folder:{folder}@test", root=folder, strict=True)
    assert found["duplicates"]["count"] == found["unreadable"]["count"] == 0
    assert not found["skipped"]
    assert found["tasks"]["landmarks5"] == {"labelled": 0}


def test_strict_inspect_raises_at_the_first_fault(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        inspect(f"folder:{folder}@train", root=folder, strict=True)


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
