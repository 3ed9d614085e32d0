"""A scorecard of a bundle whose figures are of another kind: an error that names the file, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz.bundles import tiny_bundle
from edgeface.cli.report import of_bundle
from edgeface.errors import ModelError

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "scorecard.json"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with two rows of a measured scorecard."""
    card = json.loads(RESULT.read_text(encoding="utf-8"))
    card["rows"] = card["rows"][:2]
    for row in card["rows"]:
        row["tasks"] = {"gender": row["tasks"]["gender"]}
    for name, content in {**tiny_bundle(), "scorecard.json": json.dumps(card | {"subgroups": []}).encode()}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_whole_scorecard_is_drawn_twin(bundle: Path) -> None:
    page, (card,) = of_bundle(bundle)
    assert len(card.rows) == 2
    assert "gender" in page


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: cell.update(confusion=[["{"]]),
        lambda cell: cell.update(calibration=[["", ".", "a"]]),
        lambda cell: cell.pop("metric"),
    ],
)
def test_figures_of_another_kind_are_a_model_error(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Found by fuzzing: each of these ended `edgeface report` with an internal error."""
    path = bundle / "scorecard.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card["rows"][-1]["tasks"]["gender"])
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"scorecard\.json"):
        of_bundle(bundle)
