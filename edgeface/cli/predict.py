"""`edgeface predict`: find the faces in pictures, print and draw the answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result
from edgeface.errors import UsageError
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.table import Table

    from edgeface.evaluate import Runner
    from edgeface.specs import ModelSpec

_SUFFIX = ".predicted.png"
_SMALLEST_DRAWING_PX = 480  # of the longer side; smaller pictures are enlarged
_LARGEST_DRAWING_PX = 1600  # larger ones are reduced, so that the answers beside them can be read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run, a checkpoint, a bundle, or a model file")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures to look for faces in")
    parser.add_argument(
        "--box",
        metavar="x,y,w,h",
        help="the face, in pixels, from above the brows to the chin (type --box=x,y,w,h when x is below 0); default: "
        "every face OpenCV's cascade finds",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder for NAME{_SUFFIX}; default: beside each picture"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help=f"one of {', '.join(RUNTIMES)}")
    parser.add_argument("--precision", metavar="P", help="which file of a bundle; default: w8a8")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One face and what the model answered.

    Attributes:
        box: (4,) left, top, width, height in pixels of the picture.
        crop: (3,) centre x, centre y, side of the crop the model saw, in pixels of the picture.
        points: Landmark task to (K, 2) in pixels of the picture.
        words: Task to the answer in words, landmarks left out.
        answers: Task to its entry in the JSON object.
    """

    box: NDArray[np.float32]
    crop: NDArray[np.float32]
    points: dict[str, NDArray[np.float64]]
    words: dict[str, str]
    answers: dict[str, Any]


def run(arguments: argparse.Namespace) -> Result:
    import numpy as np

    from edgeface.data.finder import find_faces
    from edgeface.data.images import read_image
    from edgeface.files import write_bytes
    from targets.runners import open_model

    images: list[Path] = arguments.images
    box = None if arguments.box is None else parse_box(arguments.box, images)
    drawn = _places(images, arguments.out)
    runner = open_model(arguments.model, runtime=arguments.runtime, precision=arguments.precision)
    # Every picture is read and answered before anything is written.
    faces: dict[Path, list[Found]] = {}
    pictures: dict[Path, bytes] = {}
    for path in images:
        picture = read_image(path)
        boxes = find_faces(picture) if box is None else np.asarray([box], np.float32)
        faces[path] = predict(runner, picture, boxes)
        if faces[path]:
            pictures[path] = draw(picture, faces[path])
    for path, content in pictures.items():
        write_bytes(drawn[path], content)
    return Result(
        payload={
            "schema": 1,
            "model": arguments.model,
            "runtime": runner.runtime,
            "precision": runner.precision,
            "images": [
                {
                    "image": path,
                    "faces": [
                        {"box": face.box.tolist(), "crop": face.crop.tolist(), "tasks": face.answers}
                        for face in faces[path]
                    ],
                    **({"drawn": drawn[path]} if path in pictures else {}),
                }
                for path in images
            ],
        },
        text=_text(faces, drawn),
        exit_code=0 if all(faces.values()) else 1,
    )


def parse_box(text: str, images: Sequence[Path]) -> tuple[float, float, float, float]:
    """The four numbers of --box.

    Raises:
        UsageError: They are not four numbers with a size, or there is more than one picture.
    """
    expected = "x,y,w,h: four numbers in pixels, w and h above 0, such as 40,30,120,120"
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(repr(text), expected=expected, where="--box") from None
    if not (abs(x) < 1e6 and abs(y) < 1e6 and 0 < width < 1e6 and 0 < height < 1e6):
        raise UsageError(repr(text), expected=expected, where="--box")
    if len(images) != 1:
        raise UsageError(f"{len(images)} pictures", expected="one picture with --box", where="--box")
    return x, y, width, height


def predict(runner: Runner, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[Found]:
    """What a model answers about the faces of a picture.

    Args:
        runner: The model.
        picture: (H, W, 3) RGB.
        boxes: (N, 4) left, top, width, height in pixels.

    Raises:
        DataError: A box lies outside the picture.
    """
    import numpy as np

    from edgeface.data.finder import crop_of_box
    from edgeface.data.geometry import crop_image
    from edgeface.evaluate import decode

    if len(boxes) == 0:
        return []
    crops = [crop_of_box(box) for box in boxes]
    batch = np.stack([crop_image(picture, crop, px=runner.spec.input_px) for crop in crops])
    outputs = runner.run(batch)
    decoded = decode(runner.spec, outputs)
    return [
        _found(runner.spec, outputs, decoded, row=row, box=box, crop=crop)
        for row, (box, crop) in enumerate(zip(boxes, crops, strict=True))
    ]


def _found(
    spec: ModelSpec,
    outputs: dict[str, NDArray[np.float32]],
    decoded: dict[str, NDArray[Any]],
    *,
    row: int,
    box: NDArray[np.float32],
    crop: NDArray[np.float32],
) -> Found:
    import numpy as np

    from edgeface.evaluate import in_words, probabilities
    from edgeface.tasks import TASKS, Kind

    points: dict[str, NDArray[np.float64]] = {}
    words: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for output in spec.outputs:
        name, kind = output.task, TASKS[output.task].kind
        answer, raw = decoded[name][row], outputs[output.name][row : row + 1]
        if kind is Kind.LANDMARKS:
            points[name] = crop[:2] + (answer.astype(np.float64) - 0.5) * crop[2]
            answers[name] = {"points": points[name].round(2).tolist()}
            continue
        words[name] = in_words(output, raw, answer)
        if kind is Kind.CLASSES:
            shares = dict(zip(output.classes, probabilities(output, raw)[0].tolist(), strict=True))
            answers[name] = {"answer": output.classes[int(answer)], "probabilities": shares}
        elif kind is Kind.ATTRIBUTES:
            shares = dict(zip(output.classes, probabilities(output, raw)[0].tolist(), strict=True))
            yes = [label for label, held in zip(output.classes, answer, strict=True) if held]
            answers[name] = {"answer": yes, "probabilities": shares}
        elif kind is Kind.AGE:
            answers[name] = {"years": float(answer)}
        elif kind is Kind.SCORE:
            answers[name] = {"score": float(answer)}
        else:
            answers[name] = {"embedding": answer.tolist()}
    return Found(box=box, crop=crop, points=points, words=words, answers=answers)


def draw(picture: NDArray[np.uint8], faces: Sequence[Found]) -> bytes:
    """A PNG of the picture with each face's crop and landmarks, and the answers in a panel beside it.

    Small pictures are enlarged by a whole factor, so that the marks can be told apart; large ones are reduced.
    """
    import io

    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    longest = max(picture.shape[:2])
    zoom = min(float(max(1, -(-_SMALLEST_DRAWING_PX // longest))), _LARGEST_DRAWING_PX / longest)
    width, height = (max(1, round(length * zoom)) for length in picture.shape[1::-1])
    enlarged = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BICUBIC)
    size = max(13, min(22, height // 32))
    font = ImageFont.load_default(size=size)
    blocks = [_block(number, face, alone=len(faces) == 1) for number, face in enumerate(faces, 1)]
    measure = ImageDraw.Draw(enlarged)
    spans = [measure.multiline_textbbox((0, 0), block, font=font) for block in blocks]
    # Blocks run down the panel, and on into further columns when the picture is not tall enough.
    margin, columns, down = size, [0.0], float(size)
    spots = []
    for _, _, right, bottom in spans:
        if down > margin and down + bottom > height - margin:
            columns.append(0.0)
            down = float(margin)
        spots.append((len(columns) - 1, down))
        columns[-1] = max(columns[-1], right)
        down += bottom + margin
    lowest = max(down_at + span[3] for (_, down_at), span in zip(spots, spans, strict=True))
    full = (round(width + sum(columns) + margin * (len(columns) + 1)), max(height, round(lowest) + margin))
    canvas = Image.new("RGB", full, "#ffffff")
    canvas.paste(enlarged, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for (column, down_at), block in zip(spots, blocks, strict=True):
        across = width + margin + sum(columns[:column]) + margin * column
        pen.multiline_text((across, down_at), block, fill="#1b1f27", font=font)
    for number, face in enumerate(faces, 1):
        _mark(pen, face, zoom=zoom, label="" if len(faces) == 1 else str(number), font=font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _block(number: int, face: Found, *, alone: bool) -> str:
    lines = [] if alone else [f"face {number}"]
    lines += [f"{task.replace('_', ' ')}: {words}" for task, words in face.words.items()]
    return "\n".join(lines) or "landmarks alone"


def _mark(pen: Any, face: Found, *, zoom: float, label: str, font: Any) -> None:
    x, y, side = (float(value) * zoom for value in face.crop)
    line = max(1, round(side / 160))
    left, top = x - side / 2, y - side / 2
    pen.rectangle((left, top, left + side, top + side), outline="#56b4e9", width=line)
    radius = max(1.5, side / 70)
    for points in face.points.values():
        for px, py in points * zoom:
            pen.ellipse((px - radius, py - radius, px + radius, py + radius), fill="#e69f00", outline="#000000")
    if label:
        _, _, right, bottom = pen.textbbox((0, 0), label, font=font)
        at = (max(0.0, left), max(0.0, top))
        pen.rectangle((*at, at[0] + right + 8, at[1] + bottom + 6), fill="#000000")
        pen.text((at[0] + 4, at[1] + 2), label, fill="#ffffff", font=font)


def _places(images: Sequence[Path], out: Path | None) -> dict[Path, Path]:
    """Where each picture's drawing goes.

    Raises:
        UsageError: Two drawings would get one name.
    """
    places = {path: (out or path.parent) / f"{path.stem}{_SUFFIX}" for path in images}
    for place in places.values():
        same = [str(other) for other, there in places.items() if there == place]
        if len(same) > 1:
            raise UsageError(
                f"{' and '.join(map(repr, same))} would both be drawn into {str(place)!r}",
                expected="pictures of different names",
                where="IMAGE",
                do="Run them one by one with another --out",
            )
    return places


def _text(faces: Mapping[Path, Sequence[Found]], drawn: Mapping[Path, Path]) -> RenderableType:
    """What is printed: for each picture a line, and a table of the answers."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for path, found in faces.items():
        if not found:
            parts.append(Text(f"{path}: no face found; name one with --box x,y,w,h"))
            continue
        parts.append(Text(f"{path}: {len(found)} face{'s' if len(found) > 1 else ''}, drawn in {drawn[path]}"))
        parts.append(_answers(found[0]) if len(found) == 1 else _answers_of_many(found))
    return Group(*parts)


def _answers(face: Found) -> Table:
    """One face: a row for each task."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_row("  box", _at(face))
    for task, words in face.words.items():
        grid.add_row(f"  {task}", words)
    for task, points in face.points.items():
        spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in points) if len(points) <= 5 else f"{len(points)} points"
        grid.add_row(f"  {task}", spots)
    return grid


def _answers_of_many(faces: Sequence[Found]) -> Table:
    """Several faces: a row for each of them. Landmarks are left to the drawing and to --json."""
    from edgeface.cli.console import table

    tasks = list(faces[0].words)
    rows = [[str(number), _at(face), *(face.words[task] for task in tasks)] for number, face in enumerate(faces, 1)]
    return table(["face", "box", *tasks], rows)


def _at(face: Found) -> str:
    return ",".join(f"{value:.0f}" for value in face.box)
