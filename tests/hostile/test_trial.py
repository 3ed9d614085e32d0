"""A bundle's manifest vouches for a digest, not for what the file does: its files are tried too, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.bundles import tiny_bundle
from edgeface.errors import ModelError
from targets import runners
from targets.runners import FORMATS, open_model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Digests that hold, about a file that is no network."""
    folder = tmp_path / "android"
    folder.mkdir()
    for name, content in tiny_bundle().items():
        (folder / name).write_bytes(content)
    return folder


def test_a_vouched_file_that_is_broken_ends_in_an_error_here(bundle: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    with pytest.raises(ModelError, match="LiteRT cannot run it"):
        open_model(bundle)


def test_a_file_is_tried_once_and_again_when_it_changes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    tried = []
    kind = runners.Format(**{**vars(FORMATS[".tflite"]), "probe": tried.append})
    file = bundle / "edge_s.w8a8.tflite"
    for _ in range(3):
        runners._try_once(file, kind)
    assert tried == [file]
    file.write_bytes(file.read_bytes() + b"\0")
    runners._try_once(file, kind)
    assert tried == [file, file]


def test_a_file_that_failed_is_not_remembered_twin(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))

    def fail(path: Path) -> None:
        raise ModelError("broken")

    kind = runners.Format(**{**vars(FORMATS[".tflite"]), "probe": fail})
    for _ in range(2):
        with pytest.raises(ModelError, match="broken"):
            runners._try_once(bundle / "edge_s.w8a8.tflite", kind)
