"""Where faces lie in the crops of each corpus, and where the training loop spends its time: figures and pages."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import crops, loop
from edgeface.config import load_recipe
from edgeface.data.loader import Batches

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def test_points_at_the_readers_scale_fill_their_share_of_the_crop() -> None:
    box = np.array([[0.0, 0.1], [1.0, 0.1], [0.5, 0.5], [0.2, 0.9], [0.8, 0.9]])
    points = 0.5 + (box - 0.5) * crops.EXPECTED
    found = crops.placed(np.stack([points] * 3))
    assert found["extent"] == pytest.approx([crops.EXPECTED] * 3, abs=1e-4)  # figures are rounded to four digits
    assert found["x"] == found["y"] == [0.5] * 3
    assert crops.placed(points[None] * 1.1)["extent"] != found["extent"], "the twin: a larger face"


def test_every_corpus_shows_faces_at_one_scale() -> None:
    """The committed figures; 0.02 of a crop is a third of what augmentation shifts a face on average."""
    found = json.loads((RESULTS / "crops.json").read_text(encoding="utf-8"))
    assert {row["source"].partition("@")[0] for row in found["rows"]} == {
        source.partition("@")[0] for source in (*load_recipe("all-tasks-cpu").data.test,)
    }
    for row in found["rows"]:
        assert row["extent"][1] == pytest.approx(found["expected"], abs=0.02)
        assert row["x"][1] == pytest.approx(0.5, abs=0.02)
        assert row["y"][1] == pytest.approx(0.5, abs=0.02)


def test_the_page_holds_the_committed_crops() -> None:
    found = json.loads((RESULTS / "crops.json").read_text(encoding="utf-8"))
    table = crops.markdown(found["rows"])
    assert table in (RESULTS / "crops.md").read_text(encoding="utf-8")
    found["rows"][0]["extent"][1] += 0.1
    assert crops.markdown(found["rows"]) not in (RESULTS / "crops.md").read_text(encoding="utf-8"), "the twin"


TINY = [
    "threads=1",
    'data.train=["synthetic:48@train"]',
    "data.val=[]",
    "data.test=[]",
    "data.pack_px=40",
    'teacher.network={backbone="vgg16", width=0.125, input_px=32}',
    "student.network.width=0.25",
    "student.network.input_px=32",
    *(f"{stage}.train.batch=16" for stage in ("teacher", "student", "qat")),
]


@pytest.mark.slow
def test_the_profile_sees_every_part_and_a_slow_one_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("all-tasks-cpu", overrides=TINY)
    rows = {row["stage"]: row for row in loop.measure(recipe, steps=3)}
    assert tuple(rows) == loop.STAGES
    for stage, row in rows.items():
        shares: dict[str, Any] = row["shares"]
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)  # eight shares rounded to four digits
        assert all(shares[part] > 0.0 for part in ("pictures", "forward", "backward", "losses", "optimizer", "rest"))
        assert (shares["teacher"] > 0.01) is (stage in ("student", "qat"))  # without one it is called and says so
        assert row["outside"] == pytest.approx(1.0 - sum(shares[part] for part in loop.NETWORK), abs=1e-3)
    plain = Batches._gather

    def slow(self: Batches, ids: Any) -> Any:
        time.sleep(0.5)
        return plain(self, ids)

    monkeypatch.setattr(Batches, "_gather", slow)
    longer = loop.measure(recipe, steps=3)[0]["shares"]["pictures"]
    assert longer > rows["teacher"]["shares"]["pictures"], "the twin: half a second a batch is seen"


def test_a_row_is_that_of_the_median_repetition() -> None:
    rows = [{"outside": share, "images_per_s": speed} for share, speed in ((0.3, 1.0), (0.1, 2.0), (0.2, 3.0))]
    assert loop.middle(rows) == {"outside": 0.2, "images_per_s": 3.0, "repeats": 3}
    assert loop.middle(rows[:2])["outside"] == 0.3, "of an even number the upper one"
    assert loop.middle(rows[:1]) == {"outside": 0.3, "images_per_s": 1.0, "repeats": 1}


def test_the_committed_page_is_that_of_its_rows() -> None:
    found = json.loads((RESULTS / "loop.json").read_text(encoding="utf-8"))
    assert loop.page(found) == (RESULTS / "loop.md").read_text(encoding="utf-8")
    assert {row["stage"] for row in found["rows"] if row["recipe"] == "all-tasks-cpu"} == set(loop.STAGES)


def test_the_short_table_of_the_loop_has_what_was_measured_and_marks_what_is_above_the_limit() -> None:
    row = {"recipe": "r", "stage": "qat", "threads": 1, "ahead": 0, "images_per_s": 100.4, "outside": 0.104}
    found = {"rows": [row, row | {"ahead": 1, "outside": 0.099}], "before": None}
    text = loop.summary(found)
    assert text.splitlines()[2] == "| `r` | qat | NOT_RUN | 100, **10.4 %** | 100, 9.9 % |"
    earlier = {"rows": [row | {"images_per_s": 80.0, "outside": 0.2}], "conditions": {}}
    text = loop.summary(found | {"before": earlier})
    assert text.splitlines()[2] == "| `r` | qat | NOT_RUN | 80, **20.0 %** → 100, **10.4 %** | 100, 9.9 % |"


def test_rows_of_an_earlier_commit_stand_beside_those_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads((RESULTS / "loop.json").read_text(encoding="utf-8"))
    now, earlier = tmp_path / "loop.json", tmp_path / "earlier.json"
    now.write_text(json.dumps(found | {"before": None}), encoding="utf-8")
    marked = [row | {"images_per_s": 1.0} for row in found["rows"]]
    earlier.write_text(json.dumps(found | {"rows": marked}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["loop", "--before", str(earlier), "--out", str(now)])
    loop.main()
    written = json.loads(now.read_text(encoding="utf-8"))
    assert written["rows"] == found["rows"]
    assert written["before"] == {"rows": marked, "conditions": found["conditions"]}
    assert found["conditions"]["commit"] in now.with_suffix(".md").read_text(encoding="utf-8")
