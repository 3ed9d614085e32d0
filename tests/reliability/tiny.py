"""A tiny run, to be disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.kills import TRAINED
from edgeface.files import sha256_file


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny recipe and the run that it gives.

    Attributes:
        recipe: Its file.
        run: A finished run.
    """

    recipe: Path
    run: Path

    def distill(self, out: Path, *words: str) -> list[str]:
        return ["distill", str(self.recipe), "--out", str(out), *words]

    def same_weights(self, run: Path) -> bool:
        return weights(run) == weights(self.run)


def weights(run: Path) -> dict[str, str]:
    """Stage to the digest of its weights, of the stages that are there."""
    paths = {stage: run / stage / "weights.safetensors" for stage in TRAINED}
    return {stage: sha256_file(path) for stage, path in paths.items() if path.is_file()}
