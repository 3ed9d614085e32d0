"""What the tests of faults share: one tiny run that nothing disturbed, made in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills import RECIPE
from edgeface.cli.main import main

from .tiny import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    assert main(["distill", str(folder / "tiny.toml"), "--out", str(folder / "runs" / "tiny")]) == 0
    return Tiny(recipe=folder / "tiny.toml", run=folder / "runs" / "tiny")


@pytest.fixture
def begun(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """Copies of the run, with its first stages alone, where no neighbour has a teacher to share."""

    def copy(*stages: str) -> Path:
        run = tmp_path / "begun" / "tiny"
        run.mkdir(parents=True)
        for name in ("recipe.toml", "faces.json"):
            shutil.copy(tiny.run / name, run / name)
        for stage in stages:
            shutil.copytree(tiny.run / stage, run / stage)
        return run

    return copy
