"""Runs a generated edgeface_example.py over cases from a file: crops and flattened answers go to another."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def flat(answer: Any) -> Iterator[float]:
    """Numbers of an answer: points and vectors as they are, a choice's index before its probabilities."""
    if isinstance(answer, np.ndarray):
        yield from answer.ravel()
    elif isinstance(answer, tuple):
        for attribute in answer:
            yield from (attribute.present, attribute.probability)
    elif isinstance(answer, float):
        yield answer
    else:
        yield from (answer.index, *answer.probabilities)


def main(module: str, cases: Path, answers: Path) -> None:
    sys.path.insert(0, module)
    import edgeface_example as generated

    content = cases.read_bytes()
    count = int(np.frombuffer(content, "<i4", 1)[0])
    at = 4
    with answers.open("wb") as file:
        for _ in range(count):
            width, height = map(int, np.frombuffer(content, "<i4", 2, at))
            crop = generated.Crop(*np.frombuffer(content, "<f4", 3, at + 8))
            at += 20
            picture = np.frombuffer(content, np.uint8, width * height * 3, at).reshape(height, width, 3)
            at += picture.size
            outputs = {}
            for name, shape in generated.SHAPES.items():
                outputs[name] = np.frombuffer(content, "<f4", int(np.prod(shape)), at)
                at += 4 * outputs[name].size
            file.write(generated.tensor(generated.cut(picture, crop)).tobytes())
            decoded = generated.decode(outputs, crop)
            values = [value for field in dataclasses.fields(decoded) for value in flat(getattr(decoded, field.name))]
            for crop in (
                generated.Crop.around_box(10.25, 20.125, 33.5, 47.75),
                generated.Crop.around_landmarks(np.array([[10, 20], [30.5, 20], [20, 30], [12, 44], [28, 43]])),
            ):
                values += [crop.center_x, crop.center_y, crop.side]
            file.write(np.array(values, "<f4").tobytes())
    foreign = {name.partition(".")[0] for name in sys.modules} & {"edgeface", "torch", "PIL", "cv2"}
    assert not foreign, f"{sorted(foreign)} imported"


main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
