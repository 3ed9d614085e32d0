"""The MTFL reader, on tiny files in the published format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.data.mtfl import first_centre, nominal_crop, person_of, read
from edgeface.errors import DataError, UsageError

# Person: Ann falls into training, Ben_Four into validation (by the hash of the name).
POINTS = "107.250000 147.750000 126.250000 106.250000 140.750000 108.750000 113.250000 143.750000 158.750000 162.750000"
TRAINING = [
    f"lfw_5590\\Ann_0001.jpg {POINTS} 1 2 2 3",
    f" lfw_5590\\Ann_0002.jpg {POINTS} 2 1 1 1",
    f" net_7876\\12_0_0.jpg {POINTS} 1 1 2 5",
    f" net_7876\\_-40_7_0.jpg {POINTS} 1 2 2 2",
]
TESTING = [f"AFLW/0001-image20056.jpg {POINTS} 1 1 2 3", f" AFLW/0003-image07098.jpg {POINTS} 2 2 1 4"]
SIZES = {"lfw_5590": (250, 250), "net_7876": (240, 240), "AFLW": (150, 150)}
TALL = "net_7876/_-40_7_0.jpg"


def write(folder: Path, *, training: list[str] = TRAINING, testing: list[str] = TESTING) -> Path:
    """A corpus on disk, with a small flat picture for each line that has a path."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    (folder / "training.txt").write_text("\n".join(training) + "\n", encoding="utf-8")
    (folder / "testing.txt").write_text("\n".join(testing) + "\n", encoding="utf-8")
    for number, line in enumerate(training + testing):
        key = line.split()[0].replace("\\", "/")
        path = folder / key
        path.parent.mkdir(exist_ok=True)
        size = (160, 216) if key == TALL else SIZES[key.split("/")[0]]
        Image.new("RGB", size, (number, 100, 200)).save(path)
    return folder


def train(folder: Path, **options: bool):
    return read(folder, source="mtfl@train", split="train", **options)


def test_codes_become_canonical_labels(tmp_path: Path) -> None:
    corpus = train(write(tmp_path))
    assert corpus.keys == ("lfw_5590/Ann_0001.jpg", "lfw_5590/Ann_0002.jpg", "net_7876/12_0_0.jpg", TALL)
    assert corpus.people == ("Ann", "Ann", "net_7876/12_0_0.jpg", TALL)
    assert corpus.labels["gender"].tolist() == [0, 1, 0, 0]  # 1 male, 2 female
    assert corpus.labels["smile"].tolist() == [0, 1, 1, 0]  # 1 yes, 2 no
    assert corpus.labels["glasses"].tolist() == [0, 1, 0, 0]
    assert corpus.labels["pose"].tolist() == [2, 0, 4, 1]
    assert corpus.research_only
    assert not corpus.skipped


def test_points_keep_their_order(tmp_path: Path) -> None:
    first = train(write(tmp_path)).labels["landmarks5"][0]
    x, y = [107.25, 147.75, 126.25, 106.25, 140.75], [108.75, 113.25, 143.75, 158.75, 162.75]
    assert first.tolist() == [[left - 0.5, top - 0.5] for left, top in zip(x, y, strict=True)]


def test_points_count_pixel_centres_from_1_in_the_published_size(tmp_path: Path) -> None:
    """Half a pixel, of 400 where a square picture of net_7876 is stored with 240."""
    corpus = train(write(tmp_path))
    first = np.array([float(word) for word in POINTS.split()]).reshape(2, 5).T
    taken_off = (first - corpus.labels["landmarks5"]).round(4)
    assert [set(each.ravel().tolist()) for each in taken_off] == [{0.5}, {0.5}, {0.3}, {0.5}]
    assert corpus.keys[2:] == ("net_7876/12_0_0.jpg", TALL)
    assert first_centre("net_7876", 400, 400) == 0.5 != first_centre("net_7876", 240, 240), "the twin: as published"


def test_the_test_split_is_testing_txt(tmp_path: Path) -> None:
    corpus = read(write(tmp_path), source="mtfl@test", split="test")
    assert corpus.keys == ("AFLW/0001-image20056.jpg", "AFLW/0003-image07098.jpg")
    assert corpus.labels["pose"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("folder", "width", "height", "expected"),
    [
        ("lfw_5590", 250, 250, (0.506 * 250, 0.543 * 250, 2.26 * 0.196 * 250)),
        ("net_7876", 240, 240, (0.501 * 240, 0.498 * 240, 2.26 * 0.278 * 240)),
        ("net_7876", 160, 216, (0.504 * 160, 0.370 * 216, 2.26 * 0.233 * 160)),
        ("AFLW", 150, 150, (0.496 * 150, 0.487 * 150, 2.26 * 0.355 * 150)),
    ],
)
def test_the_crop_comes_from_the_size_alone(folder: str, width: int, height: int, expected: tuple) -> None:
    # The same products in another order: float64 rounding.
    assert nominal_crop(folder, width, height) == pytest.approx(expected, rel=1e-12)
    assert nominal_crop(folder, width + 1, height) != pytest.approx(expected, rel=1e-12)


def test_crops_are_the_nominal_ones(tmp_path: Path) -> None:
    corpus = train(write(tmp_path))
    assert np.array_equal(corpus.crops[3], np.asarray(nominal_crop("net_7876", 160, 216), np.float32))
    assert np.array_equal(corpus.crops[2], np.asarray(nominal_crop("net_7876", 240, 240), np.float32))
    assert not np.array_equal(corpus.crops[3], np.asarray(nominal_crop("net_7876", 240, 240), np.float32))


def test_pictures_load_as_rgb(tmp_path: Path) -> None:
    picture = train(write(tmp_path)).load(0)
    assert picture.shape == (250, 250, 3)
    # JPEG keeps a flat colour to within two levels.
    assert np.abs(picture.astype(int) - [0, 100, 200]).max() <= 2
    assert np.abs(picture[..., ::-1].astype(int) - [0, 100, 200]).max() > 2


def test_a_grey_file_loads_as_rgb(tmp_path: Path) -> None:
    from PIL import Image

    write(tmp_path)
    Image.new("L", (150, 150), 77).save(tmp_path / "AFLW/0001-image20056.jpg")
    assert read(tmp_path, source="mtfl@test", split="test").load(0).shape == (150, 150, 3)


def test_validation_holds_other_people_than_training(tmp_path: Path) -> None:
    lines = [f"lfw_5590\\Person_{i:03d}_{k:04d}.jpg {POINTS} 1 1 1 1" for i in range(60) for k in (1, 2)]
    write(tmp_path, training=lines)
    held = read(tmp_path, source="mtfl@val", split="val")
    rest = train(tmp_path)
    assert len(held) + len(rest) == len(lines)
    assert held.people
    assert not set(held.people) & set(rest.people)
    assert person_of("lfw_5590/Aaron_Eckhart_0001.jpg") == "Aaron_Eckhart"
    assert person_of("net_7876/12_0_0.jpg") == "net_7876/12_0_0.jpg"


BAD_LINES = {
    "short line": f" lfw_5590\\Bad_0001.jpg {POINTS} 1 2 2",
    "long line": f" lfw_5590\\Bad_0001.jpg {POINTS} 1 2 2 3 9",
    "wrong gender code": f" lfw_5590\\Bad_0001.jpg {POINTS} 3 2 2 3",
    "wrong pose code": f" lfw_5590\\Bad_0001.jpg {POINTS} 1 2 2 6",
    "wrong smile code": f" lfw_5590\\Bad_0001.jpg {POINTS} 1 1.5 2 3",
    "not a number": f" lfw_5590\\Bad_0001.jpg {POINTS.replace('147.750000', 'x')} 1 2 2 3",
    "not finite": f" lfw_5590\\Bad_0001.jpg {POINTS.replace('147.750000', 'nan')} 1 2 2 3",
    "missing picture": f" lfw_5590\\Gone_0001.jpg {POINTS} 1 2 2 3",
    "unreadable picture": f" lfw_5590\\Text_0001.jpg {POINTS} 1 2 2 3",
    "a picture in folder 'else'": f" else\\Bad_0001.jpg {POINTS} 1 2 2 3",
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    write(tmp_path, training=TRAINING)
    for folder in ("lfw_5590", "else"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "Bad_0001.jpg").write_bytes((tmp_path / "lfw_5590/Ann_0001.jpg").read_bytes())
    (tmp_path / "lfw_5590/Text_0001.jpg").write_text("no picture")
    lines = [*TRAINING[:2], BAD_LINES[reason], *TRAINING[2:]]
    (tmp_path / "training.txt").write_text("\n".join(lines) + "\n")
    corpus = train(tmp_path)
    assert len(corpus) == len(TRAINING)
    ((found, keys),) = corpus.skipped.items()
    assert found == reason
    assert len(keys) == 1
    assert "training.txt:3" in keys[0]
    with pytest.raises(DataError) as caught:
        train(tmp_path, strict=True)
    assert caught.value.where == f"{tmp_path / 'training.txt'}:3"


def test_a_clean_list_passes_strict(tmp_path: Path) -> None:
    assert len(train(write(tmp_path), strict=True)) == len(TRAINING)


def test_a_missing_list_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="EDGEFACE_DATA") as caught:
        train(tmp_path)
    assert "training.txt" in caught.value.found


def test_a_list_without_a_usable_face_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training.txt").write_text("nothing here\n")
    with pytest.raises(DataError, match="no usable face"):
        train(tmp_path)


def test_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'train', 'val', 'test'"):
        read(tmp_path, source="mtfl@dev", split="dev")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 300), st.floats(-50, 300)), min_size=5, max_size=5), st.integers(1, 5))
def test_a_written_face_reads_back(points: list[tuple[float, float]], pose: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        row = " ".join(f"{x:.6f}" for x, _ in points) + " " + " ".join(f"{y:.6f}" for _, y in points)
        (Path(folder) / "testing.txt").write_text(f"AFLW/1.jpg {row} 2 1 2 {pose}\n")
        (Path(folder) / "AFLW").mkdir()
        (Path(folder) / "AFLW/1.jpg").touch()
        corpus = read(Path(folder), source="mtfl@test", split="test", size_of=lambda _: (150, 150))
    # Six decimals in the file, then float32 (relative 6e-8 of at most 300).
    assert np.allclose(corpus.labels["landmarks5"][0], np.array(points) - 0.5, rtol=0, atol=3e-5)
    assert corpus.labels["pose"][0] == pose - 1


def test_the_published_corpus_is_read_whole() -> None:
    root = Path(os.environ.get("EDGEFACE_DATA", ""))
    if not os.environ.get("EDGEFACE_DATA") or not (root / "mtfl").is_dir():
        pytest.skip("EDGEFACE_DATA is not set to a folder with mtfl")
    parts = {
        split: read(root / "mtfl", source=f"mtfl@{split}", split=split, strict=True)
        for split in ("train", "val", "test")
    }
    assert len(parts["train"]) + len(parts["val"]) == 10_000
    assert parts["test"].labels["landmarks5"].shape[1:] == (5, 2)
    assert not set(parts["train"].people) & set(parts["val"].people)
