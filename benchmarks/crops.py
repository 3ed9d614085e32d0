"""Whether every corpus shows its faces at the same scale: where a model finds five points in the crops of each.

    EDGEFACE_DATA=FOLDER python -m benchmarks.crops MODEL [SOURCE…]

MODEL answers landmarks5, such as the teacher of mtfl-cpu. Readers cut a square of 2.26 times the longer side of the box
around the five points, centred on it, by constants of the corpus: so the box's longer side should be 0.442 of the crop
and its centre in the middle. Writes benchmarks/results/crops.json and .md: figures only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.mtfl import CROP_OVER_EXTENT
from edgeface.data.sources import data_root
from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions

RESULT = Path(__file__).parent / "results" / "crops.json"
SOURCES = ("mtfl@val", "mtfl@test", "fairface@val", "ferplus@val", "mebeauty@val", "london@test")
EXPECTED = 1.0 / CROP_OVER_EXTENT
MEASURES = {
    "extent": "longer side of the five points' box",
    "x": "its centre, x",
    "y": "its centre, y",
    "eyes": "between the eyes",
}


def placed(points: NDArray[Any]) -> dict[str, list[float]]:
    """10, 50 and 90 % of each of MEASURES, in crop sides, over (N, 5, 2) points."""
    low, high = points.min(axis=1), points.max(axis=1)
    centre = (low + high) / 2
    values = {
        "extent": (high - low).max(axis=1),
        "x": centre[:, 0],
        "y": centre[:, 1],
        "eyes": np.linalg.norm(points[:, 0] - points[:, 1], axis=1),
    }
    return {name: [round(float(value), 4) for value in np.percentile(values[name], [10, 50, 90])] for name in MEASURES}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| crops | faces | " + " | ".join(MEASURES.values()) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for row in rows:
        cells = [f"{middle:.3f} ({low:.3f} to {high:.3f})" for low, middle, high in (row[name] for name in MEASURES)]
        lines.append(f"| `{row['source']}` | {row['faces']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: list[dict[str, Any]]) -> str:
    return f"""# Faces at one scale

`python -m benchmarks.crops runs/mtfl-cpu/teacher`; conditions in the JSON. Where the model finds five points in the
crops of each corpus, in sides of the crop: median, in brackets the middle 80 %. The readers aim at {EXPECTED:.3f} for
the longer side and at the middle, 0.5.

{markdown(rows)}
"""


def main() -> None:
    from targets.runners import open_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("sources", nargs="*", default=list(SOURCES), metavar="SOURCE")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    runner = open_model(arguments.model)
    rows = []
    for source in arguments.sources:
        found = evaluate(runner, evaluation_pack(source, runner.spec, root=data_root()), batch=256)
        points = found.predictions["landmarks5"].astype(np.float64)
        rows.append({"source": source, "faces": found.samples, **placed(points)})
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "model": str(arguments.model)}
    write_json(arguments.out, {"schema": 1, "expected": EXPECTED, "rows": rows, "conditions": conditions})
    arguments.out.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
