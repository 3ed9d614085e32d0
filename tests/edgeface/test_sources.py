"""Names of sources."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from edgeface.data import fairface, ferplus, london, mebeauty
from edgeface.data.sources import READERS, data_root, open_source, parse_source
from edgeface.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("text", "corpus", "argument", "split"),
    [
        ("mtfl", "mtfl", "", ""),
        ("mtfl@val", "mtfl", "", "val"),
        ("mtfl:/a/b@test", "mtfl", "/a/b", "test"),
        ("folder:faces", "folder", "faces", ""),
        ("folder:/home/me@work/faces", "folder", "/home/me@work/faces", ""),
        ("folder:/home/me@work/faces@train", "folder", "/home/me@work/faces", "train"),
        ("synthetic:4000@train", "synthetic", "4000", "train"),
    ],
)
def test_a_source_comes_apart(text: str, corpus: str, argument: str, split: str) -> None:
    parsed = parse_source(text)
    assert (parsed.corpus, parsed.argument, parsed.split) == (corpus, argument, split)


@pytest.mark.parametrize("text", ["mtfl@", "mtfl:", "folder:@train", "mtfl:@"])
def test_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="an empty part"):
        parse_source(text)


def test_an_unknown_corpus_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'mtfl'") as caught:
        parse_source("mftl@train")
    assert all(repr(name) in caught.value.expected for name in READERS)


def test_a_folder_source_needs_a_path() -> None:
    with pytest.raises(UsageError, match="folder:PATH"):
        open_source("folder@train", root=Path())


def test_a_missing_corpus_says_how_to_set_the_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="EDGEFACE_DATA") as caught:
        open_source("mtfl", root=tmp_path)
    assert str(tmp_path / "mtfl") in caught.value.found


def test_a_missing_typed_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Correct the path"):
        open_source(f"mtfl:{tmp_path / 'nowhere'}", root=Path())


def test_the_root_is_the_recipes_then_the_environments_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_DATA", "/faces")
    assert data_root("/mine") == Path("/mine")
    assert data_root("") == Path("/faces")
    monkeypatch.delenv("EDGEFACE_DATA")
    assert data_root("") == Path("data")


def documented_crops() -> dict[str, tuple[float, ...]]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "faces.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?:: (\w+))? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    return {part or corpus: (float(x), float(y), float(side)) for corpus, part, x, y, side in rows}


def test_documented_crops_are_the_readers() -> None:
    crops = {"fairface": fairface.CROP, "ferplus": ferplus.CROP, "mebeauty": mebeauty.CROP, **london.CROPS}
    assert documented_crops() == crops
    assert documented_crops() != crops | {"ferplus": fairface.CROP}


def test_every_corpus_is_documented_with_its_splits() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "faces.md").read_text(encoding="utf-8")
    rows = {row[1].strip(" `"): row[5] for line in text.splitlines() if len(row := line.split("|")) == 8}
    published = set(READERS) - {"folder", "synthetic", "webdataset"}
    assert published <= set(rows)
    for name in published:
        splits = import_module(f"edgeface.data.{name}").SPLITS
        plain = [split for split in splits if not split.startswith("fold")]
        assert all(re.search(rf"\b{split}\b", rows[name]) for split in plain), name
    assert not re.search(r"\bdevtest\b", rows["w300"])  # the twin
