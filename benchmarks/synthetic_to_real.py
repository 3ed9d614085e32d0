"""What a student that has only seen drawn faces knows about real ones: landmarks against the mean shape.

    python benchmarks/synthetic_to_real.py MODEL SOURCE_OF_MEAN SOURCE

The mean shape is that of real faces (SOURCE_OF_MEAN, nominal crops), which is the stronger of the two possible ones.
Prints one JSON object; the reduction is 1 - student's error / mean shape's error.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from edgeface.data.sources import data_root
from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.metrics import score
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS
from targets.runners import open_model

TASK = "landmarks5"


def main(model: str, source_of_mean: str, source: str) -> dict[str, object]:
    runner = open_model(model)
    root = data_root()
    mean = evaluation_pack(source_of_mean, runner.spec, root=root).labels[TASK].mean(axis=0)
    faces = evaluation_pack(source, runner.spec, root=root)
    guessed = score(TASKS[TASK], np.repeat(mean[None], len(faces), axis=0), faces.labels[TASK])
    answered = evaluate(runner, faces).tasks[TASK]
    return {
        "schema": 1,
        "model": model,
        "precision": runner.precision,
        "data": source,
        "faces": len(faces),
        "mean_shape_nme_percent": guessed["nme_percent"],
        "student_nme_percent": answered["nme_percent"],
        "reduction": 1.0 - float(answered["nme_percent"]) / float(guessed["nme_percent"]),
        "conditions": {"machine": cpu(), "versions": versions(), "commit": commit()},
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4]), indent=2))
