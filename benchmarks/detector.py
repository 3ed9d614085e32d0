"""Landmark errors with a face detector's box beside those with the fixed crop of the corpus, on the same faces.

    EDGEFACE_DATA=FOLDER python -m benchmarks.detector teacher=runs/mtfl-cpu/teacher w8a8=out/android \\
        [--data london mtfl@test] [--out benchmarks/results/detector.json]

The box is the largest that `edgeface.data.finder.find_faces` finds in the picture, made a crop by its constants, which
were fitted on MTFL's training list. Rows of one model and source:

    fixed, all          the corpus's crop, every labelled face
    fixed, found        the same, of the faces for which the detector finds a box
    box, found          the crop of the box, of those faces; `gap` is its error minus that of the row above, with a
                        95 % interval (paired bootstrap over faces)
    box, on the face    of these, the faces whose crop is about the labelled landmarks (`on_face`), and the gap there
    box, all            every labelled face; one without a box has no answer: a failure, and no error
    box or fixed, all   the crop of the box, and the corpus's where there is none
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus
from edgeface.data.finder import crop_of_box, find_faces
from edgeface.data.geometry import crop_image
from edgeface.data.mtfl import CROP_OVER_EXTENT
from edgeface.data.sources import data_root, open_source
from edgeface.evaluate import Runner, decode
from edgeface.files import write_json
from edgeface.metrics import paired_interval, point_errors
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS
from targets.runners import open_model

TASK = TASKS["landmarks5"]
FAILURE_PERCENT = 10.0

_CHUNK = 64


def labelled(source: str) -> Corpus:
    """The faces of a source that have five landmarks."""
    corpus = open_source(source, root=data_root())
    return corpus.select(np.flatnonzero(np.isfinite(corpus.labels[TASK.name]).all(axis=(1, 2))))


def box_crops(corpus: Corpus) -> NDArray[np.float32]:
    """(N, 3) crops of the largest face found in each picture; NaN where there is none."""
    crops = np.full((len(corpus), 3), np.nan, np.float32)
    for index in range(len(corpus)):
        boxes = find_faces(corpus.load(index))
        if len(boxes):
            crops[index] = crop_of_box(boxes[0])
    return crops


def points(runner: Runner, corpus: Corpus, crops: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 5, 2) landmarks in pixels of the pictures, each face cut by its crop."""
    parts = []
    for start in range(0, len(corpus), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(corpus)))
        batch = np.stack([crop_image(corpus.load(row), crops[row], px=runner.spec.input_px) for row in rows])
        parts.append(decode(runner.spec, runner.run(batch))[TASK.name].astype(np.float64))
    return crops[:, None, :2] + (np.concatenate(parts) - 0.5) * crops[:, None, 2:]


def rows_of(name: str, runner: Runner, corpus: Corpus, boxes: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The rows of a model on a source.

    Args:
        name: What the model is called in the rows.
        runner: The model.
        corpus: Faces that all have five landmarks.
        boxes: As `box_crops` gives them.
    """
    labels = corpus.labels[TASK.name]
    found = np.isfinite(boxes).all(axis=1)
    fixed = points(runner, corpus, corpus.crops)
    either = points(runner, corpus, np.where(found[:, None], boxes, corpus.crops))
    of_fixed, of_either = (point_errors(answer, labels).mean(axis=1) for answer in (fixed, either))
    right = on_face(boxes, labels)
    failed = (of_either > FAILURE_PERCENT) | ~found
    rows = [
        {"crop": "fixed", "faces": "all", **_scores(of_fixed)},
        {"crop": "fixed", "faces": "found", **_scores(of_fixed[found])},
        *(
            {"crop": "box", "faces": faces, **_scores(of_either[rows]), **_gap(either[rows], fixed[rows], labels[rows])}
            for faces, rows in (("found", found), ("on the face", right))
        ),
        {"crop": "box", "faces": "all", "n": len(found), "nme_percent": None, "failure_percent": 100 * failed.mean()},
        {"crop": "box or fixed", "faces": "all", **_scores(of_either)},
    ]
    return [{"model": name, "runtime": runner.runtime, "source": corpus.source, **row} for row in rows]


def on_face(crops: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) whether a crop is within 0.3 sides of the one that the labels give, and 0.6 to 1.6 times as large."""
    low, high = labels.min(axis=1), labels.max(axis=1)
    side = CROP_OVER_EXTENT * (high - low).max(axis=1)
    off = np.abs(crops[:, :2] - (low + high) / 2).max(axis=1) / side
    size = crops[:, 2] / side
    return np.asarray((off < 0.3) & (size > 0.6) & (size < 1.6))


def _gap(boxes: NDArray[np.float64], fixed: NDArray[np.float64], labels: NDArray[np.float32]) -> dict[str, Any]:
    gap = paired_interval(TASK, (boxes, fixed), labels=labels)
    return {"gap": gap.difference, "gap_interval": [gap.low, gap.high]}


def _scores(errors: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "n": len(errors),
        "nme_percent": errors.mean(),
        "failure_percent": 100 * (errors > FAILURE_PERCENT).mean(),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| source | model | crop | faces | n | mean error, % | box − fixed, points | failures, % |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        low, high = row.get("gap_interval", (0.0, 0.0))
        cells = [
            row["source"],
            row["model"],
            row["crop"],
            row["faces"],
            str(row["n"]),
            "" if row["nme_percent"] is None else f"{row['nme_percent']:.2f}",
            f"{row['gap']:+.2f} ({low:+.2f} to {high:+.2f})" if "gap" in row else "",
            f"{row['failure_percent']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


WORDS = """# What a face detector's box costs

`python -m benchmarks.detector teacher=runs/mtfl-cpu/teacher w8a8=out/android`, conditions in the JSON. The box is the
largest that OpenCV's frontal cascade finds, made a crop by the constants of `edgeface/data/finder.py`, fitted on MTFL's
training list. "found" are the faces with a box, "on the face" those of them whose box is where the labels are; for
"box, all" a face without one has no answer and is a failure; "box or fixed" takes the corpus's crop there. In brackets:
95 % interval, paired bootstrap over faces.

The fixed crops of london come from a teacher's landmarks, set by set, and know no label; those of mtfl@test are three
averages over the test labels. The tip of the nose on london is a point between template points, not an annotated one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Landmark errors with a detector's box and with the fixed crop.")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", nargs="+", default=["london", "mtfl@test"], metavar="SOURCE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/detector.json"))
    arguments = parser.parse_args()
    models = dict(model.split("=", 1) for model in arguments.models)
    runners = {name: open_model(path) for name, path in models.items()}
    rows, found = [], {}
    for source in arguments.data:
        corpus = labelled(source)
        boxes = box_crops(corpus)
        found[source] = float(np.isfinite(boxes).all(axis=1).mean())
        for name, runner in runners.items():
            rows += rows_of(name, runner, corpus, boxes)
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "models": models}
    write_json(arguments.out, {"schema": 1, "found": found, "rows": rows, "conditions": conditions})
    table = markdown(rows)
    shares = "; ".join(f"{100 * share:.1f} % of {source}" for source, share in found.items())
    arguments.out.with_suffix(".md").write_text(f"{WORDS}\nA box is found for {shares}.\n\n{table}\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
