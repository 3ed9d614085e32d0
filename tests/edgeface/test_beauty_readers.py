"""The readers of LSAFBD and SCUT-FBP5500, on tiny files in their published form."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeface.data import lsafbd, scut_fbp5500
from edgeface.data.corpus import is_validation
from edgeface.data.inspect import inspect
from edgeface.data.sources import open_source
from edgeface.errors import DataError, UsageError


def picture(file: Path, size: tuple[int, int] = (350, 350)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(np.random.default_rng(zlib.crc32(file.name.encode())).integers(0, 256, 3).tolist())
    Image.new("RGB", size, colour).save(file)


def write_lsafbd(folder: Path) -> Path:
    train = [f"female\\{number}.jpg {number % 5}" for number in range(20)]
    test = ["./male/900.jpg\t3", "male/901.jpg 0"]
    (folder / "lsafbd").mkdir()
    (folder / "lsafbd/train.txt").write_text("\r\n".join(train) + "\r\n\r\n")
    (folder / "lsafbd/test.txt").write_text("\n".join(test) + "\n")
    for line in (*train, *test):
        picture(folder / "lsafbd" / line.split()[0].replace("\\", "/"))
    return folder


def test_lsafbd_has_five_classes_and_paths_with_either_slash(tmp_path: Path) -> None:
    root = write_lsafbd(tmp_path)
    train, test = (open_source(f"lsafbd@{split}", root=root, strict=True) for split in ("train", "test"))
    assert train.keys == tuple(f"female/{number}.jpg" for number in range(20))
    assert train.labels["beauty"].tolist() == [number % 5 for number in range(20)]
    assert test.keys == ("male/900.jpg", "male/901.jpg")
    assert test.labels["beauty"].tolist() == [3, 0]
    assert train.research_only
    assert train.load(0).shape == (350, 350, 3)
    np.testing.assert_allclose(train.crops[0], (175, 175, 350))


def test_fit_and_dev_part_the_training_list(tmp_path: Path) -> None:
    root = write_lsafbd(tmp_path)
    fit, dev = (open_source(f"lsafbd@{split}", root=root).keys for split in ("fit", "dev"))
    assert sorted(fit + dev) == sorted(open_source("lsafbd", root=root).keys)
    assert all(map(is_validation, dev))
    assert not any(map(is_validation, fit))


LSAFBD_FAULTS = {
    "wrong class": "female/x.jpg 5",
    "short line": "female/x.jpg",
    "long line": "female/x.jpg 1 2",
    "missing picture": "female/gone.jpg 1",
    "named twice": "female/0.jpg 0",
}


@pytest.mark.parametrize("reason", LSAFBD_FAULTS)
def test_a_bad_line_of_lsafbd_is_listed_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    root = write_lsafbd(tmp_path)
    with (root / "lsafbd/train.txt").open("a") as file:
        file.write(LSAFBD_FAULTS[reason] + "\n")
    corpus = open_source("lsafbd", root=root)
    assert {name: len(keys) for name, keys in corpus.skipped.items()} == {reason: 1}
    assert len(corpus) == 20
    with pytest.raises(DataError) as caught:
        open_source("lsafbd", root=root, strict=True)
    assert caught.value.where.endswith("train.txt:22")


FACES = {  # name to score, ethnicity, gender (0 male, 1 female)
    "AF1.jpg": ("2.883333", "asian", 1),
    "CM12.jpg": ("1", "caucasian", 0),
    "AM7.jpg": ("5.0", "asian", 0),
    "CF437.jpg": ("3", "caucasian", 1),
    "fty5.jpg": ("4", "asian", 1),
    "mtw5.jpg": ("2", "caucasian", 0),
}


def write_scut(folder: Path) -> Path:
    base = folder / "scut_fbp5500"
    lines = {name: f"{name} {score}" for name, (score, _, _) in FACES.items()}
    names = list(lines)
    lists = {
        "All_labels.txt": names,
        "split_of_60%training and 40%testing/train.txt": names[:4],
        "split_of_60%training and 40%testing/test.txt": names[4:],
    }
    for fold in range(1, 6):
        stem = f"5_folders_cross_validations_files/cross_validation_{fold}"
        lists[f"{stem}/train_{fold}.txt"] = [name for name in names if name != names[fold]]
        lists[f"{stem}/test_{fold}.txt"] = [names[fold]]
    for file, chosen in lists.items():
        path = base / "train_test_files" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines[name] for name in chosen) + "\n")
    for name in names:
        picture(base / "Images" / name)
    return folder


def test_scut_scores_lie_between_0_and_1_and_keep_their_scale(tmp_path: Path) -> None:
    root = write_scut(tmp_path)
    train, test = (open_source(f"scut_fbp5500@{split}", root=root, strict=True) for split in ("train", "test"))
    for corpus, names in ((train, list(FACES)[:4]), (test, list(FACES)[4:])):
        assert corpus.keys == tuple(f"Images/{name}" for name in names)
        raw = [float(FACES[name][0]) for name in names]
        low, high = corpus.scales["beauty_score"]
        np.testing.assert_allclose(low + corpus.labels["beauty_score"] * (high - low), raw, rtol=1e-6)
        assert corpus.groups["ethnicity"].tolist() == [FACES[name][1] for name in names]
        assert corpus.labels["gender"].tolist() == [FACES[name][2] for name in names]
        assert corpus.research_only


@pytest.mark.parametrize("fold", range(1, 6))
def test_scut_folds_are_the_published_lists(tmp_path: Path, fold: int) -> None:
    root = write_scut(tmp_path)
    train, test = (open_source(f"scut_fbp5500@fold{fold}-{part}", root=root).keys for part in ("train", "test"))
    assert test == (f"Images/{list(FACES)[fold]}",)
    assert set(train) == {f"Images/{name}" for name in FACES} - set(test)
    fit = open_source(f"scut_fbp5500@fold{fold}-fit", root=root).keys
    assert set(fit) == {key for key in train if not is_validation(key.removeprefix("Images/"))}


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("wrong name", "XF1.jpg 3"),
        ("wrong score", "AF2.jpg 5.5"),
        ("wrong score", "AF2.jpg x"),
        ("short line", "AF2.jpg"),
    ],
)
def test_a_bad_line_of_scut_is_listed_and_strict_names_it(tmp_path: Path, reason: str, line: str) -> None:
    root = write_scut(tmp_path)
    listing = scut_fbp5500.listing(root / "scut_fbp5500", "train")
    listing.write_text(listing.read_text() + line + "\n")
    assert list(open_source("scut_fbp5500", root=root).skipped) == [reason]
    with pytest.raises(DataError) as caught:
        open_source("scut_fbp5500", root=root, strict=True)
    assert caught.value.where.endswith("train.txt:5")


@pytest.mark.parametrize("source", ["lsafbd@val", "scut_fbp5500@val", "scut_fbp5500@fold6-train", "scut_fbp5500@fold1"])
def test_another_split_is_refused_with_what_to_take(tmp_path: Path, source: str) -> None:
    root = write_scut(write_lsafbd(tmp_path))
    with pytest.raises(UsageError, match="Choose by @dev"):
        open_source(source, root=root)


def test_both_are_inspected(tmp_path: Path) -> None:
    root = write_scut(write_lsafbd(tmp_path))
    found = inspect("lsafbd@train", root=root)
    assert found["tasks"]["beauty"]["classes"] == dict.fromkeys("01234", 0.2)
    assert found["shared_people"] == {"test": 0}
    folds = inspect("scut_fbp5500@fold2-train", root=root)
    assert folds["shared_people"] == {"fold2-test": 0}
    assert folds["tasks"]["beauty_score"]["scale"] == [1.0, 5.0]
    assert folds["licence"] == scut_fbp5500.TERMS.licence != lsafbd.TERMS.licence
