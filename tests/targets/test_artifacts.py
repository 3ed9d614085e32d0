"""Models of several files: every part counts, and a part that is missing, altered or too many is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeface.errors import ModelError
from targets import artifacts


def _one(folder: Path) -> Path:
    (folder / "net.w8a8.tflite").write_bytes(b"weights")
    return folder / "net.w8a8.tflite"


def _two(folder: Path) -> Path:
    (folder / "net.w8a8.xml").write_bytes(b"<net/>")
    (folder / "net.w8a8.bin").write_bytes(b"weights")
    return folder / "net.w8a8.xml"


def _package(folder: Path) -> Path:
    package = folder / "net.w8a8.mlpackage"
    (package / "Data" / "weights").mkdir(parents=True)
    (package / "Manifest.json").write_bytes(b"{}")
    (package / "Data" / "weights" / "weight.bin").write_bytes(b"weights")
    return package


LAST_PART = {_one: "net.w8a8.tflite", _two: "net.w8a8.bin", _package: "net.w8a8.mlpackage/Data/weights/weight.bin"}


@pytest.mark.parametrize("make", LAST_PART)
def test_whole_model_passes(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    entry = artifacts.entry(path)
    artifacts.check(path, entry)
    assert entry["size_bytes"] == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("make", LAST_PART)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_part_is_named_twin(make: Callable[[Path], Path], damage: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    entry = artifacts.entry(path)
    part = tmp_path / LAST_PART[make]
    match damage:
        case "altered":
            part.write_bytes(b"weighty")
        case "truncated":
            part.write_bytes(b"weig")
        case "missing":
            part.unlink()

    with pytest.raises(ModelError) as caught:
        artifacts.check(path, entry)

    assert caught.value.where == str(part)


def test_file_too_many_in_a_package_is_named_twin(tmp_path: Path) -> None:
    path = _package(tmp_path)
    entry = artifacts.entry(path)
    (path / "Data" / "more.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"more\.bin"):
        artifacts.check(path, entry)
