"""A tiny bundle's int8 and float files, faces to run, and devices that run the real agent and then lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from targets.build import build
from targets.devices.host import Host
from targets.devices.shipped import Faces, Shipped, choose_faces, open_bundle

FILES = {"w8a8": "edge_s.w8a8.tflite", "fp32": "edge_s.fp32.tflite"}

Arrays = dict[str, NDArray[Any]]
Result = dict[str, Any]


class Board:
    """A device that is neither this machine nor emulated: it runs the real agent here, then `tamper` changes the job.

    Args:
        tamper: Called with the job folder when the agent has ended.
    """

    name = "board"
    emulated = False
    detail = "a stand-in"

    def __init__(self, tamper: Callable[[Path], None] = lambda job: None) -> None:
        self.tamper = tamper

    def run(self, job: Path, *, told: Callable[[str], None]) -> None:
        Host().run(job, told=told)
        self.tamper(job)


def edited(change: Callable[[Result, Arrays], Arrays | None], *, place: int = 0) -> Callable[[Path], None]:
    """A liar's hand: changes one file's entry and answers, and makes the result vouch for them.

    Args:
        change: Of the result and one file's answers; gives other answers, or None for the same ones.
        place: Which file's answers.
    """

    def tamper(job: Path) -> None:
        result = json.loads((job / "result.json").read_text(encoding="utf-8"))
        entry = result["files"][place]
        path = job / entry["answers"]
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        np.savez(path, **(change(result, arrays) or arrays))
        entry["answers_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (job / "result.json").write_text(json.dumps(result), encoding="utf-8")

    return tamper


@pytest.fixture(scope="session")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The w8a8 and fp32 files of `run_folder`; tests must not change it."""
    return build(run_folder, precisions=("w8a8", "fp32"), out=tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="session")
def shipped(bundle: Path) -> Shipped:
    """Its w8a8 file."""
    return open_bundle(bundle, precisions=("w8a8",))


@pytest.fixture(scope="session")
def faces(shipped: Shipped) -> Faces:
    """The 24 golden faces and 8 more."""
    return choose_faces(shipped, n=32, root=Path())
