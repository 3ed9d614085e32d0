"""Label files that are broken, enormous or lead elsewhere: the row is left out and named, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz.pictures import pictures_of_all_kinds
from edgeface import limits
from edgeface.data import fer2013, folder, mebeauty, mtfl
from edgeface.data.corpus import Corpus
from edgeface.data.fairface import age_bin
from edgeface.data.points import read_pts
from edgeface.errors import DataError

PICTURE = pictures_of_all_kinds()["rgb.png"]
HEAD = "file_name,gender,age,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n"
GOOD = "a.png,male,30,1,2,3,4,5,6,7,8,9,10\n"


def _read(tmp_path: Path, table: str | bytes) -> Corpus:
    (tmp_path / "metadata.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    (tmp_path / "a.png").write_bytes(PICTURE)
    return folder.read(tmp_path, source="folder:x")


def _left_out(tmp_path: Path, row: str) -> str:
    """Why a row is left out beside a good one."""
    corpus = _read(tmp_path, HEAD + GOOD + row + "\n")
    assert corpus.keys == ("a.png",)
    (reason,) = corpus.skipped
    return reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,male,30,nan,2,3,4,5,6,7,8,9,10", "not a number"),
        ("a.png,male,30,inf,2,3,4,5,6,7,8,9,10", "not a number"),
        ("a.png,male,30,1e999,2,3,4,5,6,7,8,9,10", "not a number"),
        ("a.png,male,30,1,2,3", "short line"),
        ("a.png,male,30,1,2,3,4,5,6,7,8,9,10,11", "long line"),
        ("a.png,²,30,1,2,3,4,5,6,7,8,9,10", "wrong gender"),
        ("a.png,٣,30,1,2,3,4,5,6,7,8,9,10", "wrong gender"),
        ("a.png,male,300,1,2,3,4,5,6,7,8,9,10", "wrong age"),
        ("../a.png,male,30,1,2,3,4,5,6,7,8,9,10", "path out of the folder"),
        ("/etc/passwd,male,30,1,2,3,4,5,6,7,8,9,10", "path out of the folder"),
        ("c:\\a.png,male,30,1,2,3,4,5,6,7,8,9,10", "path out of the folder"),
        ("..\\a.png,male,30,1,2,3,4,5,6,7,8,9,10", "path out of the folder"),
        ("a\0.png,male,30,1,2,3,4,5,6,7,8,9,10", "wrong path"),
        (f"{'x' * 2000},male,30,1,2,3,4,5,6,7,8,9,10", "path too long"),
        (f"{'x' * 300},male,30,1,2,3,4,5,6,7,8,9,10", "unreadable picture"),
        ("b.png,male,30,1,2,3,4,5,6,7,8,9,10", "missing picture"),
    ],
)
def test_a_bad_row_is_left_out_with_its_reason(tmp_path: Path, row: str, reason: str) -> None:
    assert _left_out(tmp_path, row) == reason


def test_a_good_row_is_kept_twin(tmp_path: Path) -> None:
    corpus = _read(tmp_path, HEAD + GOOD)
    assert (len(corpus), dict(corpus.skipped)) == (1, {})


@pytest.mark.parametrize("again", [GOOD, GOOD.replace("a.png", "./a.png"), GOOD.replace(",30,", ",30.0,")])
def test_a_face_named_twice_is_left_out_and_refused_when_strict(tmp_path: Path, again: str) -> None:
    """It would count twice in every mean."""
    assert _left_out(tmp_path, again.strip()) == "named twice"
    with pytest.raises(DataError, match=r"metadata\.csv:3: named twice"):
        folder.read(tmp_path, source="folder:x", strict=True)


@pytest.mark.parametrize("other", [GOOD.replace(",2,", ",2.5,"), GOOD.replace("male", "female")])
def test_two_faces_of_one_picture_have_names_of_their_own_twin(tmp_path: Path, other: str) -> None:
    _read(tmp_path, HEAD + GOOD + other)
    assert folder.read(tmp_path, source="folder:x", strict=True).keys == ("a.png", "a.png#2")


LINE = " lfw_5590\\a.jpg 1 2 3 4 5 6 7 8 9 10 1 1 1 1\n"


def _mtfl(tmp_path: Path, content: bytes) -> Corpus:
    (tmp_path / "lfw_5590").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "lfw_5590" / name).write_bytes(PICTURE)
    (tmp_path / "training.txt").write_bytes(content)
    return mtfl.read(tmp_path, source="mtfl@train", split="train")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE, "named twice"),
        (" lfw_5590/a.jpg 1 2 3 4 5 6 7 8 9 10 1 1 1 1\n", "named twice"),
        (LINE.replace(" 10 ", " ").replace("a.jpg", "b.jpg"), "short line"),
        (LINE.replace(" 10 ", " 10 11 ").replace("a.jpg", "b.jpg"), "long line"),
        (LINE.replace(" 10 ", " nan ").replace("a.jpg", "b.jpg"), "not finite"),
        (LINE.replace(" 10 ", " ten ").replace("a.jpg", "b.jpg"), "not a number"),
    ],
)
def test_a_bad_line_of_a_published_list_is_left_out_with_its_reason(line: str, reason: str, tmp_path: Path) -> None:
    """A face named twice would count twice in every mean."""
    corpus = _mtfl(tmp_path, (LINE + line).encode())
    assert corpus.keys == ("lfw_5590/a.jpg",)
    assert list(corpus.skipped) == [reason]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_published_list_in_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        _mtfl(tmp_path, (LINE + LINE.replace("a.jpg", "ä.jpg")).encode(encoding))


def test_a_published_list_is_read_twin(tmp_path: Path) -> None:
    assert len(_mtfl(tmp_path, (LINE + LINE.replace("a.jpg", "b.jpg")).encode())) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-32"])
def test_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path, (HEAD + GOOD.replace("a.png", "ä.png")).encode(encoding))


def test_a_byte_order_mark_is_none_twin(tmp_path: Path) -> None:
    assert len(_read(tmp_path, (HEAD + GOOD).encode("utf-8-sig"))) == 1


@pytest.mark.parametrize("line", ["x" * 1_100_000, "x," * 600_000, '"' + "x" * 200_000])
def test_a_huge_line_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path, HEAD + GOOD + line + "\n")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metadata.csv", lambda path: folder.read(path, source="x")),
        ("labels.csv", lambda path: mebeauty.read(path, source="x", split="val")),
        ("training.txt", lambda path: mtfl.read(path, source="x", split="train")),
    ],
)
def test_the_limit_on_bytes_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Path], Corpus]
) -> None:
    (tmp_path / name).write_bytes(b"a,b\n" * 100)
    monkeypatch.setattr(limits, "LABEL_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 are read"):
        read(tmp_path)


def test_a_list_cannot_name_pictures_outside_its_corpus(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    inside = tmp_path / "corpus"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "a.png").write_bytes(PICTURE)
    head = "image,split,beauty_1to10,gender,ethnicity\n"
    rows = "images/a.png,val,5,male,asian\n../secret.png,val,5,male,asian\n"
    (inside / "labels.csv").write_text(head + rows)
    corpus = mebeauty.read(inside, source="x", split="val")
    assert corpus.keys == ("images/a.png",)
    assert list(corpus.skipped) == ["path out of the folder"]


def test_a_pixel_beyond_every_integer_is_a_wrong_pixel(tmp_path: Path) -> None:
    """Found by fuzzing: NumPy raises OverflowError rather than ValueError."""
    good, bad = " ".join(map(str, range(48))), " ".join(["9" * 30] * 48)
    rows = "".join(f'3,"{" ".join([words] * 48)}",PublicTest\n' for words in (good, bad))
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n" + rows)
    corpus = fer2013.read(tmp_path, source="x", split="val")
    assert len(corpus) == 1
    assert list(corpus.skipped) == ["wrong pixels"]


def test_digits_of_no_number_are_no_age() -> None:
    """Found by reading: "²" is a digit that int() refuses."""
    assert age_bin("²-Sep") is None
    assert age_bin("03-Sep") == "3-9"


def test_points_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "face.pts"
    path.write_text("n_points: 68\n{\n" + "1 2\n" * 68 + "}\n")
    assert read_pts(path).shape == (68, 2)
    monkeypatch.setattr(limits, "LABEL_LINE", 100)
    with pytest.raises(DataError, match="at most 100 are read"):
        read_pts(path)
