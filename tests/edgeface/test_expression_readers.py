"""The readers of FER2013, RAF-DB, CK+ and Oulu-CASIA, on tiny files in their published form."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeface.data import ckplus, oulu_casia
from edgeface.data.inspect import inspect
from edgeface.data.listing import fold_and_part, people_folds
from edgeface.data.pack import pack
from edgeface.data.sources import open_source
from edgeface.errors import DataError, UsageError
from edgeface.tasks import EXPRESSIONS, TASKS


def picture(file: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = zlib.crc32(str(file).encode()) % 256
    Image.new(mode, size, grey if mode == "L" else (grey, 255 - grey, 7)).save(file)


# --- FER2013

EMOTIONS = ("angry", "disgust", "scared", "happy", "sad", "surprised", "calm")  # 0 to 6


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48))


def write_fer2013(folder: Path, rows: tuple[str, ...] = (), *, later: bool = False) -> Path:
    (folder / "fer2013").mkdir(exist_ok=True)
    lines = []
    for number, usage in enumerate(["Training"] * 7 + ["PublicTest", "PrivateTest", "PrivateTest"]):
        text = " ".join(map(str, pixels(number).ravel()))
        lines.append(f"{number % 7},{usage},{text}" if later else f"{number % 7},{text},{usage}")
    head, name = ("emotion, Usage, pixels", "icml_face_data.csv") if later else ("emotion,pixels,Usage", "fer2013.csv")
    (folder / "fer2013" / name).write_text("\n".join([head, *lines, *rows]) + "\n")
    return folder


@pytest.mark.parametrize("later", [False, True])
def test_fer2013_pixels_come_out_of_the_text(tmp_path: Path, later: bool) -> None:
    root = write_fer2013(tmp_path, later=later)
    train, val, test = (open_source(f"fer2013@{split}", root=root, strict=True) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (7, 1, 2)
    assert train.labels["expression"].tolist() == [EXPRESSIONS.index(name) for name in EMOTIONS]
    for index in range(7):
        np.testing.assert_array_equal(train.load(index), np.repeat(pixels(index)[..., None], 3, axis=2))
    np.testing.assert_array_equal(test.load(1)[..., 0], pixels(9))
    assert test.keys == ("PrivateTest/00001", "PrivateTest/00002")
    assert not np.array_equal(train.load(0), train.load(1))  # the twin


def test_fer2013_parts_and_packs(tmp_path: Path) -> None:
    root = write_fer2013(tmp_path)
    corpora = [open_source(f"fer2013@{part}", root=root) for part in ("train", "fit")]
    dev = set(corpora[0].keys) - set(corpora[1].keys)
    if dev:
        assert set(open_source("fer2013@dev", root=root).keys) == dev
    packed = pack(corpora[1], px=48, margin=1.0, cache=tmp_path / "cache")
    assert packed.keys == corpora[1].keys
    chosen = corpora[0].select([3])
    np.testing.assert_array_equal(chosen.load(0)[..., 0], pixels(3))


def test_the_same_fer2013_has_the_same_fingerprint_and_another_has_not(tmp_path: Path) -> None:
    first = open_source("fer2013", root=write_fer2013(tmp_path))
    assert open_source("fer2013", root=tmp_path).fingerprint == first.fingerprint
    listing = tmp_path / "fer2013/fer2013.csv"
    text = listing.read_text()
    place = text.index("\n1,") + 3
    listing.write_text(text[:place] + "99" + text[place:].partition(" ")[1] + text[place:].partition(" ")[2])
    assert open_source("fer2013", root=tmp_path).fingerprint != first.fingerprint


FER_FAULTS = {
    "wrong pixels": f"3,{' '.join(['1'] * 2303)},Training",
    "wrong emotion": f"7,{' '.join(['1'] * 2304)},Training",
    "wrong Usage": f"3,{' '.join(['1'] * 2304)},Testing",
}


@pytest.mark.parametrize("reason", FER_FAULTS)
def test_a_bad_row_of_fer2013_is_listed_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    root = write_fer2013(tmp_path, (FER_FAULTS[reason],))
    assert list(open_source("fer2013", root=root).skipped) == [reason]
    with pytest.raises(DataError) as caught:
        open_source("fer2013", root=root, strict=True)
    assert caught.value.where.endswith("fer2013.csv:12")


@pytest.mark.parametrize("word", ["256", "-1", "x", "1.5"])
def test_a_pixel_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    root = write_fer2013(tmp_path, (f"3,{' '.join([word, *['1'] * 2303])},Training",))
    assert list(open_source("fer2013", root=root).skipped) == ["wrong pixels"]


def test_pictures_of_one_colour_are_left_out_even_by_strict(tmp_path: Path) -> None:
    root = write_fer2013(tmp_path, (f"3,{' '.join(['0'] * 2304)},Training",))
    corpus = open_source("fer2013", root=root, strict=True)
    assert corpus.skipped == {"picture of one colour": ("Training/00008 (fer2013.csv:12)",)}


# --- RAF-DB

RAF = {  # name to code, expression, gender, race, age, the last three as in its attribute file
    "train_00001": ("5", "sad", "1", "0", "2"),
    "train_00002": ("1", "surprised", "0", "2", "0"),
    "train_00003": ("7", "calm", "2", "1", "4"),
    "test_0001": ("4", "happy", "0", "0", "3"),
}


def write_rafdb(folder: Path, *, inner: str = "basic", described: bool = True) -> Path:
    base = folder / "rafdb" / inner
    (base / "EmoLabel").mkdir(parents=True)
    (base / "EmoLabel/list_patition_label.txt").write_text(
        "".join(f"{name}.jpg {row[0]}\n" for name, row in RAF.items())
    )
    for name, row in RAF.items():
        picture(base / "Image/aligned" / f"{name}_aligned.jpg", (100, 100))
        if described:
            (base / "Annotation/manual").mkdir(parents=True, exist_ok=True)
            points = "".join(f"{120.5 + step}\t{99.25 + step}\n" for step in range(5))
            text = points + "\n".join(row[2:]) + "\n"
            (base / "Annotation/manual" / f"{name}_manu_attri.txt").write_text(text)
    return folder


@pytest.mark.parametrize("inner", ["basic", ""])
def test_rafdb_reads_expression_gender_and_age(tmp_path: Path, inner: str) -> None:
    train = open_source("rafdb@train", root=write_rafdb(tmp_path, inner=inner), strict=True)
    assert train.keys == tuple(f"Image/aligned/train_0000{number}_aligned.jpg" for number in (1, 2, 3))
    assert [EXPRESSIONS[code] for code in train.labels["expression"]] == ["sad", "surprised", "calm"]
    assert train.labels["gender"].tolist() == [1, 0, -1]  # female, male, unsure
    assert train.labels["age"].tolist() == [[20, 39], [0, 3], [70, 100]]
    assert train.groups["race"].tolist() == ["Caucasian", "Asian", "African-American"]
    assert train.groups["age"].tolist() == ["20-39", "0-3", "70+"]
    test = open_source("rafdb@test", root=tmp_path, strict=True)
    assert [EXPRESSIONS[code] for code in test.labels["expression"]] == ["happy"]


def test_rafdb_without_attributes_has_expressions_alone(tmp_path: Path) -> None:
    corpus = open_source("rafdb", root=write_rafdb(tmp_path, described=False), strict=True)
    assert set(corpus.labels) == {"expression"}
    assert corpus.groups == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.unlink(), "missing attribute file"),
        (lambda file: file.write_text("1 2\n" * 4 + "0\n0\n0\n"), "wrong attribute file"),
        (lambda file: file.write_text("1 2\n" * 5 + "3\n0\n0\n"), "wrong attribute file"),
    ],
    ids=["missing", "a landmark short", "gender 3"],
)
def test_a_bad_attribute_file_is_listed(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    root = write_rafdb(tmp_path)
    change(root / "rafdb/basic/Annotation/manual/train_00002_manu_attri.txt")
    assert {name: len(keys) for name, keys in open_source("rafdb", root=root).skipped.items()} == {reason: 1}
    with pytest.raises(DataError, match="train_00002"):
        open_source("rafdb", root=root, strict=True)


@pytest.mark.parametrize(("line", "reason"), [("train_00009.jpg 8", "wrong expression"), ("val_1.jpg 1", "wrong name")])
def test_a_bad_line_of_rafdb_is_listed(tmp_path: Path, line: str, reason: str) -> None:
    root = write_rafdb(tmp_path)
    with (root / "rafdb/basic/EmoLabel/list_patition_label.txt").open("a") as file:
        file.write(line + "\n")
    assert list(open_source("rafdb", root=root).skipped) == [reason]


# --- CK+

SUBJECTS = tuple(f"S{number:03d}" for number in (5, 10, 11, 14, 22, 26, 28, 32, 34, 37, 42, 999))
MARKS = np.stack([200 + 2.0 * np.arange(68), 150 + 3.0 * np.arange(68)], axis=1)


def write_ckplus(folder: Path, code: str = "   3.0000000e+00\n") -> Path:
    base = folder / "ckplus"
    for subject in SUBJECTS:
        for sequence in ("001", "002"):
            images, marks = (base / top / subject / sequence for top in ("cohn-kanade-images", "Landmarks"))
            marks.mkdir(parents=True)
            for frame in range(1, 6):
                name = f"{subject}_{sequence}_{frame:08d}"
                picture(images / f"{name}.png", (64, 49), "L")
                lines = [f"   {x:.7e}   {y:.7e}" for x, y in MARKS + frame]
                (marks / f"{name}_landmarks.txt").write_text("\n".join(lines) + "\n")
            (images / ".DS_Store").write_bytes(b"\0")
            (base / "Emotion" / subject / sequence).mkdir(parents=True)  # 002 stays empty: not labelled
        (base / "Emotion" / subject / "001" / f"{subject}_001_00000005_emotion.txt").write_text(code)
        (base / "Emotion" / subject / "001" / ".DS_Store").write_bytes(b"\0")
    return folder


def test_ckplus_takes_the_last_three_and_the_first_of_labelled_sequences(tmp_path: Path) -> None:
    corpus = open_source("ckplus@train", root=write_ckplus(tmp_path), strict=True)
    assert len(corpus) == 4 * len(SUBJECTS)
    assert [key[-12:-4] for key in corpus.keys[:4]] == ["00000001", "00000003", "00000004", "00000005"]
    assert [EXPRESSIONS[code] for code in corpus.labels["expression"][:4]] == ["calm", "disgust", "disgust", "disgust"]
    assert corpus.labels["identity"].tolist() == np.repeat(np.arange(len(SUBJECTS)), 4).tolist()
    assert set(corpus.people) == set(SUBJECTS)
    np.testing.assert_allclose(corpus.labels["landmarks68"][1], MARKS + 3, rtol=1e-6)
    assert not np.allclose(corpus.labels["landmarks68"][0], MARKS + 3, rtol=1e-6)  # the twin
    assert corpus.load(0).shape == (49, 64, 3)


@pytest.mark.parametrize(("code", "name"), list(enumerate(ckplus.CODES)))
def test_every_emotion_of_ckplus_is_its_class(tmp_path: Path, code: int, name: str) -> None:
    corpus = open_source("ckplus@fold1-test", root=write_ckplus(tmp_path, f"   {code}.0000000e+00"), strict=True)
    assert corpus.labels["expression8"][3] == TASKS["expression8"].classes.index(name)
    assert corpus.labels["expression"][3] == (EXPRESSIONS.index(name) if name in EXPRESSIONS else -1)


def test_ckplus_codes_are_the_published_ones() -> None:
    # of the corpus's read-me: 0=neutral, 1=anger, 2=contempt, 3=disgust, 4=fear, 5=happy, 6=sadness, 7=surprise
    assert ckplus.CODES == ("calm", "angry", "contempt", "disgust", "scared", "happy", "sad", "surprised")


@pytest.mark.parametrize(("code", "reason"), [("8.0", "wrong code"), ("", "wrong code"), ("2.5", "wrong code")])
def test_a_bad_emotion_is_listed(tmp_path: Path, code: str, reason: str) -> None:
    root = write_ckplus(tmp_path)
    (root / "ckplus/Emotion/S005/001/S005_001_00000005_emotion.txt").write_text(code)
    assert {name: len(keys) for name, keys in open_source("ckplus", root=root).skipped.items()} == {reason: 3}


def test_a_sequence_without_pictures_and_a_picture_without_landmarks_are_listed(tmp_path: Path) -> None:
    root = write_ckplus(tmp_path)
    for file in sorted((root / "ckplus/cohn-kanade-images/S005/001").glob("*.png"))[:3]:
        file.unlink()
    (root / "ckplus/Landmarks/S010/001/S010_001_00000005_landmarks.txt").unlink()
    skipped = open_source("ckplus", root=root).skipped
    assert {name: len(keys) for name, keys in skipped.items()} == {"short sequence": 1, "missing landmark file": 1}


# --- Oulu-CASIA


def write_oulu(folder: Path, above: str = "PreProcess_Img") -> Path:
    for person in range(1, 13):
        for name in oulu_casia.FOLDERS:
            for frame in range(5):
                file = folder / "oulu_casia" / above / f"VL_Acropped/Strong/P{person:03d}" / name / f"{frame:03d}.jpeg"
                picture(file, (96, 84))
    return folder


@pytest.mark.parametrize("above", ["PreProcess_Img", "PreProcessImg", ""])
def test_oulu_takes_the_last_three_pictures(tmp_path: Path, above: str) -> None:
    corpus = open_source("oulu_casia@fold1-test", root=write_oulu(tmp_path, above), strict=True)
    assert set(corpus.people) == {"P001", "P011"}
    assert corpus.keys[:3] == tuple(f"P001/Anger/{frame:03d}.jpeg" for frame in (2, 3, 4))
    assert len(corpus) == 2 * 6 * 3
    names = [EXPRESSIONS[code] for code in corpus.labels["expression"][:18:3]]
    assert names == ["angry", "disgust", "scared", "happy", "sad", "surprised"]
    np.testing.assert_allclose(corpus.crops[0], (48, 42, 96))


def test_another_folder_of_oulu_is_listed(tmp_path: Path) -> None:
    root = write_oulu(tmp_path)
    picture(root / "oulu_casia/PreProcess_Img/VL_Acropped/Strong/P002/Neutral/000.jpeg", (96, 84))
    assert {name: len(keys) for name, keys in open_source("oulu_casia", root=root).skipped.items()} == {
        "wrong folder": 1
    }


# --- folds

WRITERS = {"ckplus": write_ckplus, "oulu_casia": write_oulu}


@pytest.mark.parametrize("name", WRITERS)
def test_ten_folds_hold_every_person_once_and_share_none(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path)
    everybody = set(open_source(f"{name}@train", root=root).people)
    seen: list[str] = []
    for fold in range(1, 11):
        parts = {}
        for part in ("train", "fit", "dev", "test"):
            try:
                parts[part] = set(open_source(f"{name}@fold{fold}-{part}", root=root).people)
            except DataError:
                assert part == "dev"  # of eleven people, a tenth by hash may be nobody
                parts[part] = set()
        assert not parts["train"] & parts["test"]
        assert parts["train"] | parts["test"] == everybody
        assert parts["fit"] | parts["dev"] == parts["train"]
        assert not parts["fit"] & parts["dev"]
        seen += parts["test"]
    assert sorted(seen) == sorted(everybody)


def test_folds_are_every_tenth_person() -> None:
    people = [f"S{number:03d}" for number in range(25)]
    folds = people_folds(reversed(people))
    assert [person for person in people if folds[person] == 3] == ["S002", "S012", "S022"]
    assert fold_and_part("fold10-dev") == (10, "dev")
    assert fold_and_part("train") == (0, "train")


@pytest.mark.parametrize(
    "source", ["ckplus@fold11-test", "ckplus@test", "oulu_casia@fold1", "rafdb@val", "fer2013@fold1-test"]
)
def test_another_split_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / source.partition("@")[0]).mkdir()
    with pytest.raises(UsageError, match="one of 'train'"):
        open_source(source, root=tmp_path)


@pytest.mark.parametrize(
    ("source", "write", "shared"),
    [
        ("fer2013@test", write_fer2013, {"train": 0, "val": 0}),
        ("rafdb@train", write_rafdb, {"test": 0}),
        ("ckplus@fold2-train", write_ckplus, {"fold2-test": 0}),
        ("oulu_casia@fold2-test", write_oulu, {"fold2-train": 0}),
    ],
)
def test_each_is_inspected(tmp_path: Path, source: str, write: Callable[[Path], Path], shared: dict[str, int]) -> None:
    found = inspect(source, root=write(tmp_path))
    assert found["shared_people"] == shared
    assert found["tasks"]["expression"]["labelled"] > 0
    assert found["unreadable"]["count"] == 0
    assert found["research_only"]
