"""What the templates of every language are filled with: a manifest in the form that code needs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from targets.meaning import MEANING

_WIDTH = 112
_CARD = "MODEL_CARD.md"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One output and how it is decoded.

    Attributes:
        name: Of the output tensor.
        kind: One of edgeface.tasks.Kind; "stagewise" for an age of stages, "heatmap" for landmarks as heatmaps.
        size: Values of one sample.
        classes: Names of the classes or attributes.
        mean_shape: Mean landmarks in crop sides: x0, y0, x1, y1, …
        cut: Logit above which a two-class decision is class 1 and an attribute is present.
        stages: Bins of each stage of a stage-wise age.
        cells: Rows, columns and points of heatmaps.
        span: Sides of the crop that a heatmap covers.
        about: One line for the documentation of its field.
    """

    name: str
    kind: str
    size: int
    classes: tuple[str, ...]
    mean_shape: tuple[float, ...]
    cut: float
    stages: tuple[int, ...]
    cells: tuple[int, ...]
    span: float
    about: str

    @property
    def constant(self) -> str:
        """MOUTH_OPEN of mouth_open."""
        return self.name.upper()

    @property
    def camel(self) -> str:
        """mouthOpen of mouth_open."""
        return camel(self.name)

    @property
    def pascal(self) -> str:
        """MouthOpen of mouth_open."""
        return self.camel[0].upper() + self.camel[1:]


_ABOUT = {
    "landmarks": "{points} points in pixels of the picture.",
    "heatmap": "{points} points in pixels of the picture.",
    "classes": "{classes}.",
    "score": "From 0 to 1.",
    "age": "Apparent age in years: the expectation over the softmax of {size} classes, one a year.",
    "stagewise": "Apparent age in years, 0 to 100: stages of a few bins, which move and stretch with the face.",
    "identity": "A vector of {size} values and length 1; the dot product of two says how alike the faces are.",
    "attributes": "Each on its own: {classes}.",
}


def camel(name: str) -> str:
    """mouthOpen of mouth_open."""
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def render(template: str, manifest: Mapping[str, Any], *, comment: str) -> str:
    """A template of this package, filled from a manifest.

    Args:
        template: Its file name in templates/.
        manifest: A bundle's manifest.
        comment: What begins a line of the file's head: "// ", or "" inside a docstring.
    """
    import jinja2

    source = files("targets.codegen").joinpath("templates", template).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["rows"] = rows
    environment.filters["quoted"] = quoted
    answers = [_answer(output) for output in manifest["outputs"]]
    crop, given = manifest["crop"], manifest["input"]
    return environment.from_string(source).render(
        title=manifest["name"],
        target=manifest["target"],
        head="\n".join(f"{comment}{line}".rstrip() for line in _head(manifest, compiled=bool(comment))),
        answers=answers,
        kinds={answer.kind for answer in answers},
        px=int(crop["size_px"]),
        over_landmarks=float(crop["side_over_landmarks"]),
        over_box=float(crop["side_over_box"]),
        down_over_box=float(crop["down_over_box"]),
        float_input=given["type"] == "float32",
        mean=[float(value) for value in given["mean"]],
        std=[float(value) for value in given["std"]],
    )


def _answer(output: Mapping[str, Any]) -> Answer:
    size = math.prod(output["shape"])
    threshold = float(output["threshold"])
    span = float(output.get("heatmap_span", 0.0))
    kind = "heatmap" if span else "stagewise" if output["stages"] else str(output["kind"])
    about = _ABOUT[kind].format(
        points=len(output["mean_shape"]),
        size=size,
        classes=_listed([str(label).replace("_", " ") for label in output["classes"]]),
    )
    return Answer(
        name=str(output["name"]),
        kind=kind,
        size=size,
        classes=tuple(map(str, output["classes"])),
        mean_shape=tuple(float(value) for point in output["mean_shape"] for value in point),
        cut=math.log(threshold / (1.0 - threshold)),
        stages=tuple(map(int, output["stages"])),
        cells=tuple(map(int, output["shape"][1:])) if span else (),
        span=span,
        about=about,
    )


def _head(manifest: Mapping[str, Any], *, compiled: bool) -> list[str]:
    """What stands at the top of every file: what it is, who may use it, and what its answers are not."""
    licences = "; ".join(manifest["licences"]) or "none recorded"
    use = "RESEARCH ONLY: not to be shipped in a product" if manifest["research_only"] else "no corpus is research-only"
    told = [output for output in manifest["outputs"] if output["task"] in MEANING]
    paragraphs = [
        "Generated by edgeface from manifest.json: build again instead of editing."
        + (" Compiled: NOT_RUN, the build that wrote this file only wrote it." if compiled else ""),
        f"Terms of what the model was trained on: {licences}; {use}. More in {_CARD}.",
        *(f"{output['name']}: {MEANING[output['task']]}" for output in told),
    ]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += ["", *textwrap.wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)]
    return lines[1:]


def _listed(labels: Sequence[str]) -> str:
    """Labels for one line of a comment; of many the first, for the code below holds them all."""
    most = 12
    return ", ".join(labels) if len(labels) <= most else f"{', '.join(labels[:3])} and {len(labels) - 3} more"


def rows(items: Sequence[object], indent: int) -> str:
    """Items with commas between them, eight a line."""
    texts = [str(item) for item in items]
    lines = [", ".join(texts[start : start + 8]) for start in range(0, len(texts), 8)]
    return (",\n" + " " * indent).join(lines)


def quoted(items: Sequence[str]) -> list[str]:
    """Each in double quotes, for languages that escape as JSON does."""
    return ['"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items]
