"""The readers of UTKFace, CelebA and LFW, on tiny files in their published form."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeface.cli.main import main
from edgeface.data import celeba, utkface
from edgeface.data.fairface import CROP as FAIRFACE_CROP
from edgeface.data.inspect import inspect
from edgeface.data.sources import open_source, pairs_of
from edgeface.errors import DataError, UsageError
from edgeface.specs import ModelSpec, output_spec
from edgeface.tasks import CELEBA_ATTRIBUTES
from edgeface.verification import read_pairs


def picture(file: Path, size: tuple[int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(np.random.default_rng(zlib.crc32(str(file).encode())).integers(0, 256, 3).tolist())
    Image.new("RGB", size, colour).save(file)


# --- UTKFace

NAMES = {  # name to lowest age (None: no label), gender, race
    "26_0_2_20170104165609283.jpg.chip.jpg": (26, 0, "Asian"),
    "1_1_4_20161219140530307.jpg.chip.jpg": (1, 1, "Others"),
    "100_1_0_20170110182836729.jpg.chip.jpg": (100, 1, "White"),
    "116_1_0_20170120134744096.jpg.chip.jpg": (None, 1, "White"),
    "39_1_20170116174525125.jpg.chip.jpg": (39, -1, ""),
    "61_3_20170109150557335.jpg.chip.jpg": (61, -1, ""),
    "53__0_20170116184028385.jpg.chip.jpg": (53, -1, "White"),
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, 0, "Black"),
    "55_0_0_20170116232725357jpg.chip.jpg": (55, 0, "White"),
    "44_1_4_20170116235150272.pg.chip.jpg": (44, 1, "Others"),
    "7_0_3_20170110225013755.jpg": (7, 0, "Indian"),
    "8_1_0_20170110225013755.JPG": (8, 1, "White"),
}


def write_utkface(folder: Path, names: tuple[str, ...] = tuple(NAMES)) -> Path:
    for name in names:
        picture(folder / "utkface/UTKFace" / name, (200, 200))
    return folder


def both(root: Path) -> dict[str, tuple[object, int]]:
    """Key to the corpus and the row of every face of both sides."""
    found = {}
    for split in ("train", "test"):
        if any(utkface.is_test(file.name) == (split == "test") for file in (root / "utkface/UTKFace").iterdir()):
            corpus = open_source(f"utkface@{split}", root=root, strict=True)
            found |= {key: (corpus, row) for row, key in enumerate(corpus.keys)}
    return found


def test_utkface_names_give_what_they_leave_no_doubt_about(tmp_path: Path) -> None:
    found = both(write_utkface(tmp_path))
    assert set(found) == {f"UTKFace/{name}" for name in NAMES}
    for name, (age, gender, race) in NAMES.items():
        corpus, row = found[f"UTKFace/{name}"]
        years = corpus.labels["age"][row]
        assert np.isnan(years).all() if age is None else years.tolist() == [age, age], name
        assert corpus.labels["gender"][row] == gender, name
        assert corpus.groups["race"][row] == race, name
        np.testing.assert_allclose(corpus.crops[row] / 200, FAIRFACE_CROP, rtol=1e-6)
        assert corpus.research_only


@pytest.mark.parametrize("name", ["x_0_1_20170116220224657.jpg", "5_2_1_20170116220224657.jpg.chip.jpg", "5_0_1.jpg"])
def test_a_utkface_name_that_says_nothing_is_listed(tmp_path: Path, name: str) -> None:
    root = write_utkface(tmp_path, (*NAMES, name))
    split = "test" if utkface.is_test(name) else "train"
    assert {key: len(found) for key, found in open_source(f"utkface@{split}", root=root).skipped.items()} == {
        "wrong name": 1
    }
    with pytest.raises(DataError, match="wrong name"):
        open_source(f"utkface@{split}", root=root, strict=True)


def test_about_a_fifth_of_utkface_is_tested_on_and_nothing_is_on_both_sides() -> None:
    names = [f"{number % 90}_0_0_20170116{number:09d}.jpg.chip.jpg" for number in range(4000)]
    # a share of 0.2 of 4,000 has a standard deviation of 0.0063: three of them
    assert np.mean([utkface.is_test(name) for name in names]) == pytest.approx(0.2, abs=0.019)


def test_utkface_landmarks_are_read_where_their_lists_are(tmp_path: Path) -> None:
    root = write_utkface(tmp_path)
    points = np.arange(136).reshape(68, 2) - 4
    lines = [f"{name.removesuffix('.chip.jpg')} {' '.join(map(str, points.ravel()))} " for name in NAMES]
    assert "landmarks68" not in open_source("utkface", root=root).labels
    named = [line for line in lines if " ." not in line]  # a blank in a name parts it
    (root / "utkface/landmark_list_part1.txt").write_text("\n".join(named[:3]))
    (root / "utkface/landmark_list_part3.txt").write_text("\n".join(named[3:]))
    for key, (corpus, row) in both(root).items():
        known = corpus.labels["landmarks68"][row]
        if " ." in key:
            assert np.isnan(known).all()
        else:
            np.testing.assert_allclose(known, points + 0.5, atol=1e-4)
    found = inspect("utkface@train", root=root)
    assert found["tasks"]["landmarks68"]["labelled"] == found["tasks"]["landmarks5"]["labelled"] > 0


def test_a_short_landmark_line_is_the_faces_fault(tmp_path: Path) -> None:
    root = write_utkface(tmp_path)
    name = next(name for name in NAMES if not utkface.is_test(name))
    (root / "utkface/landmark_list_part1.txt").write_text(f"{name.removesuffix('.chip.jpg')} 1 2 3\n")
    assert list(open_source("utkface", root=root).skipped) == ["short line"]


# --- CelebA

POINTS = np.array([[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]])
PARTS = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 1, "000004.jpg": 2}
YES = {
    "000001.jpg": {"Male", "Young"},
    "000002.jpg": {"Smiling", "Eyeglasses"},
    "000003.jpg": set(),
    "000004.jpg": {"Male"},
}


def write_celeba(folder: Path, *, flat: bool = False, extras: bool = True, more: int = 0) -> Path:
    """The four faces of PARTS, and `more` training faces of other people, each attribute on every third of them."""
    base = folder / "celeba"
    added = {f"{number:06d}.jpg": number for number in range(5, 5 + more)}
    parts = PARTS | dict.fromkeys(added, 0)
    people = {name: 2880 + part for name, part in PARTS.items()} | {name: 3000 + at for name, at in added.items()}
    third = {
        name: {attribute for place, attribute in enumerate(CELEBA_ATTRIBUTES) if (place + number) % 3 == 0}
        for name, number in added.items()
    }
    yes = YES | third
    anno, evaluation, images = (base / name for name in (("", "", "") if flat else ("Anno", "Eval", "Img")))
    for place in (anno, evaluation, images):
        place.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{name} {'  '.join('1' if attribute in yes[name] else '-1' for attribute in CELEBA_ATTRIBUTES)}"
        for name in parts
    ]
    head = f"{len(rows)}\n{' '.join(CELEBA_ATTRIBUTES)} \n"
    (anno / "list_attr_celeba.txt").write_text(head + "\n".join(rows) + "\n")
    (evaluation / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in parts.items()))
    if extras:
        (anno / "identity_CelebA.txt").write_text("".join(f"{name} {person}\n" for name, person in people.items()))
        names = (
            "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
        )
        numbers = "    ".join(map(str, POINTS.ravel()))
        lines = [f"{name} {numbers}" for name in parts]
        (anno / "list_landmarks_align_celeba.txt").write_text(f"{len(lines)}\n{names}\n" + "\n".join(lines) + "\n")
    for name in parts:
        picture(images / "img_align_celeba" / name, (178, 218))
    return folder


@pytest.mark.parametrize("flat", [False, True])
def test_celeba_attributes_are_read_and_four_are_tasks_too(tmp_path: Path, flat: bool) -> None:
    root = write_celeba(tmp_path, flat=flat)
    train = open_source("celeba@train", root=root, strict=True)
    assert [key.rpartition("/")[2] for key in train.keys] == ["000001.jpg", "000002.jpg"]
    for row, name in enumerate(("000001.jpg", "000002.jpg")):
        yes = {CELEBA_ATTRIBUTES[place] for place in np.flatnonzero(train.labels["attributes40"][row])}
        assert yes == YES[name]
    assert train.labels["gender"].tolist() == [0, 1]  # male, female
    assert train.labels["smile"].tolist() == [0, 1]
    assert train.labels["glasses"].tolist() == [0, 1]
    assert train.labels["mouth_open"].tolist() == [0, 0]
    np.testing.assert_allclose(train.labels["landmarks5"][0], POINTS)
    assert train.labels["identity"].tolist() == [0, 0]
    assert train.people == ("2880", "2880")
    assert open_source("celeba@val", root=root).keys[0].endswith("000003.jpg")
    assert open_source("celeba@test", root=root).keys[0].endswith("000004.jpg")


def test_celeba_crop_is_one_for_all_and_from_training_landmarks_alone(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    test = open_source("celeba@test", root=root)
    np.testing.assert_allclose(test.crops[0], (88.5, 131.5, 2.26 * 45), rtol=1e-6)
    listing = root / "celeba/Anno/list_landmarks_align_celeba.txt"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join([*lines[:-1], "000004.jpg " + "10 20 " * 5]) + "\n")
    np.testing.assert_array_equal(open_source("celeba@test", root=root).crops, test.crops)
    listing.write_text("\n".join([*lines[:2], *(line.replace(" 109 ", " 99 ") for line in lines[2:])]) + "\n")
    assert not np.allclose(open_source("celeba@test", root=root).crops, test.crops)  # the twin


def test_celeba_without_people_and_landmarks_has_neither_and_about_the_same_crop(tmp_path: Path) -> None:
    corpus = open_source("celeba@test", root=write_celeba(tmp_path, extras=False), strict=True)
    assert set(corpus.labels) == {"attributes40", "gender", "smile", "glasses", "mouth_open"}
    np.testing.assert_allclose(corpus.crops[0] / (178, 218, 178), celeba.CROP, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("Anno/list_attr_celeba.txt", "4\n", "5\n", "4 pictures"),
        ("Anno/list_attr_celeba.txt", "4\n5_o_Clock_Shadow", "4\nGoatee", "the first lines"),
        ("Anno/list_attr_celeba.txt", "4\n", "", "the first lines"),
        ("Anno/list_landmarks_align_celeba.txt", "lefteye_x ", "righteye_x ", "the first lines"),
    ],
)
def test_a_celeba_list_with_another_head_is_refused(tmp_path: Path, name: str, old: str, new: str, found: str) -> None:
    root = write_celeba(tmp_path)
    listing = root / "celeba" / name
    listing.write_text(listing.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=found) as caught:
        open_source("celeba", root=root)
    assert listing.name in caught.value.where


def test_a_bad_celeba_line_is_listed(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    listing = root / "celeba/Anno/list_attr_celeba.txt"
    listing.write_text(listing.read_text().replace("000002.jpg -1", "000002.jpg 0"))
    assert list(open_source("celeba", root=root).skipped) == ["wrong 5_o_Clock_Shadow"]
    (root / "celeba/Eval/list_eval_partition.txt").write_text("000002.jpg 0\n")
    assert list(open_source("celeba@train", root=write_celeba(tmp_path / "b")).skipped) == []
    with pytest.raises(DataError, match=r"first left out: (in no part|wrong)"):
        open_source("celeba@train", root=root)


def test_celeba_is_inspected(tmp_path: Path) -> None:
    found = inspect("celeba@train", root=write_celeba(tmp_path))
    assert found["tasks"]["attributes40"]["attributes"]["Young"] == {"labelled": 2, "positive": 1}
    assert found["shared_people"] == {"val": 0, "test": 0}
    assert found["tasks"]["identity"]["identities"] == 1


# --- LFW

PEOPLE = {"Ann_Lee": 3, "Bob": 2, "Cid": 2, "Dan_de_Vito": 1, "Eve": 1}
PAIRS = "2\t1\nAnn_Lee\t1\t3\nBob\t1\tCid\t2\nCid\t1\t2\nDan_de_Vito\t1\tEve\t1\n"


def write_lfw(folder: Path, *, images: str = "lfw") -> Path:
    for name, count in PEOPLE.items():
        for number in range(1, count + 1):
            picture(folder / "lfw" / images / name / f"{name}_{number:04d}.jpg", (250, 250))
    (folder / "lfw/pairs.txt").write_text(PAIRS)
    (folder / "lfw/pairsDevTest.txt").write_text("1\nBob\t1\t2\nBob\t1\tEve\t1\n")
    return folder


@pytest.mark.parametrize("images", ["lfw", "lfw_funneled", "lfw-deepfunneled", "."])
def test_lfw_pairs_are_the_pictures_of_the_list(tmp_path: Path, images: str) -> None:
    root = write_lfw(tmp_path, images=images)
    corpus = open_source("lfw@pairs", root=root, strict=True)
    listed = read_pairs(root / "lfw/pairs.txt")
    assert set(corpus.keys) == {*listed.first, *listed.second}
    person = dict(zip(corpus.keys, corpus.labels["identity"].tolist(), strict=True))
    for first, second, same in zip(listed.first, listed.second, listed.same, strict=True):
        assert (person[first] == person[second]) == same
    assert open_source("lfw", root=root).keys == corpus.keys
    np.testing.assert_allclose(corpus.crops[0], (126.5, 135.75, 2.26 * 49), rtol=1e-5)
    assert len(open_source("lfw@all", root=root)) == sum(PEOPLE.values())
    assert set(open_source("lfw@devtest", root=root).people) == {"Bob", "Eve"}


def test_only_lfw_pairs_bring_their_list(tmp_path: Path) -> None:
    root = write_lfw(tmp_path)
    assert pairs_of("lfw@pairs", root=root) == pairs_of("lfw", root=root) == root / "lfw/pairs.txt"
    assert pairs_of(f"lfw:{root / 'lfw'}@pairs", root=Path()) == root / "lfw/pairs.txt"
    assert pairs_of("lfw@devtest", root=root) is None
    assert pairs_of("synthetic:8@test", root=root) is None


def test_a_missing_list_and_a_missing_picture_are_named(tmp_path: Path) -> None:
    root = write_lfw(tmp_path)
    with pytest.raises(DataError, match=r"pairsDevTrain\.txt is missing"):
        open_source("lfw@devtrain", root=root)
    (root / "lfw/lfw/Cid/Cid_0002.jpg").unlink()
    assert open_source("lfw", root=root).skipped == {"missing picture": ("Cid/Cid_0002.jpg (pairs.txt)",)}
    with pytest.raises(UsageError, match="'pairs', 'devtrain'"):
        open_source("lfw@train", root=root)


def test_lfw_is_inspected(tmp_path: Path) -> None:
    found = inspect("lfw@pairs", root=write_lfw(tmp_path))
    assert (found["samples"], found["people"], found["named"]) == (7, 5, 7)
    assert found["research_only"]


class ByColour:
    """A model whose embedding is the colour of the picture's middle: identity, or nothing but gender."""

    runtime, precision = "torch", "fp32"

    def __init__(self, task: str) -> None:
        self.spec = ModelSpec(name="edge_s", input_px=16, outputs=(output_spec(task),))

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        (output,) = self.spec.outputs
        colours = batch[:, 8, 8].astype(np.float32) - 128
        return {output.name: np.tile(colours, (1, 128))[:, : output.shape[0]]}


def scored(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_eval_scores_the_published_pairs_of_lfw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_lfw(tmp_path)
    colours = {"Ann_Lee": "red", "Bob": "lime", "Cid": "blue", "Dan_de_Vito": "yellow", "Eve": "black"}
    for file in (root / "lfw/lfw").glob("*/*.jpg"):
        Image.new("RGB", (250, 250), colours[file.parent.name]).save(file)
    monkeypatch.setenv("EDGEFACE_DATA", str(root))
    monkeypatch.setattr("targets.runners.open_to_score", lambda path, **_: ByColour(path.name))
    found = scored(["eval", "identity", "--data", "lfw@pairs"], capsys)
    assert found["tasks"]["identity"]["verification_accuracy"] == 1.0
    assert found["tasks"]["identity"]["n"] == 4
    assert found["absent"] == {}
    Image.new("RGB", (250, 250), "blue").save(root / "lfw/lfw/Bob/Bob_0001.jpg")  # the twin: Bob looks like Cid
    again = scored(["eval", "identity", "--data", "lfw@pairs"], capsys)
    assert again["tasks"]["identity"]["verification_accuracy"] < 1.0
    assert scored(["eval", "gender", "--data", "lfw@pairs"], capsys)["tasks"] == {}
    assert (
        "verification_accuracy"
        not in scored(["eval", "identity", "--data", "lfw@devtest"], capsys)["tasks"]["identity"]
    )
