"""What `edgeface data` finds in a source."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.data.inspect import LISTED, MIRRORED_EYES, OUTSIDE_CROP, inspect
from edgeface.data.sources import READERS, splits_apart
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
    assert found["doubtful"] == {
        f"landmarks5: {MIRRORED_EYES}": {"count": 1, "keys": ["b.png"]},
        f"landmarks5: {OUTSIDE_CROP}": {"count": 1, "keys": ["b.png"]},
    }
    assert found["compared"]["test"] == 1
    assert found["shared_people"]["test"] == 1
    assert found["shared_pictures"]["test"] == {"count": 0, "keys": []}


def test_eyes_the_right_way_round_are_no_finding_twin(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("12,4,4,4,8,8,5,12,30,12", "4,4,12,4,8,8,5,12,11,12"))
    assert inspect(f"folder:{folder}@train", root=folder)["doubtful"] == {}


def test_without_a_split_a_folders_splits_are_compared_with_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.png").write_bytes((folder / "d.png").read_bytes())
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("b.png,train", "b.png,val"))
    found = inspect(f"folder:{folder}", root=folder)
    assert found["compared"] == {"train": 3, "val": 1, "test": 1}
    assert found["shared_people"] == {"train and val": 0, "train and test": 1, "val and test": 0}
    assert {pair: each["keys"] for pair, each in found["shared_pictures"].items()} == {
        "train and val": [],
        "train and test": ["d.png"],
        "val and test": [],
    }
    assert main(["data", "inspect", f"folder:{folder}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Splits: @train (3 faces), @val (1 faces), @test (1 faces)." in out
    assert "@train and @test: 1" in out
    assert "1 × picture that is in both @train and @test: d.png" in out
    assert "none is in both @val and @test" in out


def test_a_row_that_stands_in_two_splits_is_found_though_the_whole_folder_reads_it_once(folder: Path) -> None:
    table = folder / "metadata.csv"
    row = next(line for line in table.read_text().splitlines() if line.startswith("a.png"))
    table.write_text(table.read_text() + row.replace("train", "test") + "\n")
    found = inspect(f"folder:{folder}", root=folder)
    assert found["skipped"]["named twice"]["count"] == 1
    assert "a.png" in found["shared_pictures"]["train and test"]["keys"]


def test_splits_in_folders_of_their_own_have_to_be_named(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "metadata.csv").rename(folder / "train/metadata.csv")
    with pytest.raises(DataError, match=r"but one in train/.*@train"):
        inspect(f"folder:{folder}", root=folder)


@pytest.mark.parametrize(
    ("corpus", "split", "others"),
    [
        ("mtfl", "train", ("val", "test")),
        ("fairface", "fit", ("dev", "val", "test")),
        ("ckplus", "fold3-train", ("fold3-val", "fold3-test")),
        ("lfw", "devtrain", ("devtest",)),
        ("lfw", "pairs", ()),
        ("w300", "full", ("train", "private")),
        ("w300", "challenging-found", ("train", "common", "private")),
        ("folder", "", ("train", "val", "test")),
        ("folder", "test", ("train", "val")),
        ("synthetic", "train", ()),
    ],
)
def test_splits_that_should_have_nothing_in_common(corpus: str, split: str, others: tuple[str, ...]) -> None:
    assert splits_apart(corpus, split) == others


def test_every_reader_knows_the_splits_it_names_as_apart() -> None:
    for corpus in READERS:
        module = import_module(f"edgeface.data.{corpus}")
        apart = getattr(module, "APART", {})
        assert {split for split, others in apart.items() for split in (split, *others)} <= set(
            getattr(module, "SPLITS", ())
        )


def test_people_of_both_development_lists_of_lfw_are_found(tmp_path: Path) -> None:
    from PIL import Image

    for place, name in enumerate(("Ann", "Bob", "Cid")):
        for number in (1, 2):
            file = tmp_path / f"lfw/{name}/{name}_{number:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * place, 90 * number, 0)).save(file)
    (tmp_path / "pairsDevTrain.txt").write_text("1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    (tmp_path / "pairsDevTest.txt").write_text("1\nBob\t1\t2\nBob\t2\tCid\t1\n")
    found = inspect(f"lfw:{tmp_path}@devtrain", root=tmp_path)
    assert found["compared"] == {"devtest": 3}
    assert found["shared_people"] == {"devtest": 1}
    assert found["shared_pictures"]["devtest"]["keys"] == ["Bob/Bob_0001.jpg"]
    (tmp_path / "pairsDevTest.txt").write_text("1\nCid\t1\t2\nCid\t2\tCid\t1\n")
    assert inspect(f"lfw:{tmp_path}@devtrain", root=tmp_path)["shared_people"] == {"devtest": 0}, "the twin"


@pytest.mark.parametrize("many", [3, 30])
def test_all_names_every_picture_of_a_finding(
    many: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("COLUMNS", "200")
    for place in range(many + 1):
        Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / f"{place:03}.png")
    rows = "".join(f"{place:03}.png,1\n" for place in range(many + 1))
    (tmp_path / "metadata.csv").write_text(f"file_name,smile\n{rows}")
    source = f"folder:{tmp_path}"
    assert len(inspect(source, root=tmp_path)["duplicates"]["keys"]) == min(many, LISTED)
    assert main(["data", "inspect", source, "--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["duplicates"]["keys"]) == many
    assert main(["data", "inspect", source]) == 0
    assert ("With --all" in capsys.readouterr().out) is (many > 3)
    assert main(["data", "inspect", source, "--all"]) == 0
    assert f"{many:03}.png = 000.png" in capsys.readouterr().out


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
    assert "None is unreadable, none repeats another, none is also in @train" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["data", "inspect", f"folder:{folder}@train"]) == 0
    out = capsys.readouterr().out
    assert "None is also in @test." in out, "the twin: there is one of each"


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
    for words in (
        "4 faces of 4 people",
        "missing picture: gone.png",
        "1 with mirrored eyes",
        "smiling 75.0 %",
        "labelled at or left of the left eye: b.png",
    ):
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
