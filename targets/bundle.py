"""The bundle: the folder an app team receives.

NAME.PRECISION.SUFFIX   one model per precision: .tflite, .mlpackage, .xml with its .bin, .onnx
manifest.json           pre- and post-processing as data, digests, where everything comes from
golden.npz              synthetic faces and the raw outputs of each file, so that a bundle can check itself anywhere
EdgeFace.kt             the same pre- and post-processing in the language of the target: Kotlin, Swift, Python and C++
MODEL_CARD.md           licences, limits, measured figures
scorecard.json          measured task by task; written by `edgeface build` when the data is there
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.checkpoint import Checkpoint
from edgeface.config import to_plain
from edgeface.data.finder import DETECTORS
from edgeface.errors import ModelError
from edgeface.files import sha256_file, write_bytes, write_json
from edgeface.provenance import commit, versions
from edgeface.specs import ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind
from quantize.grid import Quantized
from targets import artifacts
from targets.codegen import generate
from targets.judge import Codes, Judgement, answers_of, judge, must_be_identical
from targets.model_card import model_card
from targets.program import lossless_grid_of
from targets.protocol import Grids
from targets.runners import MANIFEST, open_file, open_model

SCHEMA = 1
GOLDEN = "golden.npz"
CARD = "MODEL_CARD.md"
SCORECARD = "scorecard.json"
GOLDEN_FACES = 24

# Side of the crop over the longer side of the box around the five landmarks, and that box's centre at the crop's.
CROP_OVER_LANDMARKS = 2.26

_DECODE = {
    Kind.LANDMARKS: "points in crop sides: mean_shape plus output; times the crop's side, plus its corner",
    Kind.CLASSES: "logits: softmax, the largest; of two classes the second when its probability exceeds threshold",
    Kind.SCORE: "the score as it comes, 0 to 1",
    Kind.AGE: "logits of the ages 0 to 100 in years: expectation over the softmax",
    Kind.IDENTITY: "an embedding: scale to length 1, compare two by their dot product",
    Kind.ATTRIBUTES: "one logit per attribute: present when its sigmoid exceeds threshold",
}
_DECODE_STAGES = (
    "of each stage in turn: a logit a bin, a shift a bin, one width. Divide the unit, 101 years at first, by "
    "bins * (1 + tanh(width) / 2); add unit * sum of softmax(logits) * (0, 1, … + tanh(shifts)). At the end, keep "
    "within 0 to 100 years"
)
_UNITS = {Kind.LANDMARKS: "crop sides", Kind.AGE: "logit", Kind.CLASSES: "logit", Kind.ATTRIBUTES: "logit"}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One file's answers to the golden faces against those it was shipped with.

    Attributes:
        file: Its name.
        precision: Its precision.
        bit_identical: True when every output is the same to the bit.
        sqnr_db: Least signal-to-noise ratio over its outputs.
        passed: int8 files on XNNPACK must be bit-identical; others must reach the floor of their precision.
    """

    file: str
    precision: str
    bit_identical: bool
    sqnr_db: float
    passed: bool


def golden_faces(spec: ModelSpec, *, count: int = GOLDEN_FACES) -> NDArray[np.uint8]:
    """Synthetic test faces, cropped for a model: (count, H, W, 3)."""
    from edgeface.data.geometry import crop_image
    from edgeface.data.sources import open_source

    corpus = open_source(f"synthetic:{count}@test", root=Path())
    crops = [crop_image(corpus.load(row), corpus.crops[row], px=spec.input_px) for row in range(count)]
    return np.stack(crops)


def write_bundle(
    folder: Path,
    *,
    target: str,
    spec: ModelSpec,
    files: Mapping[str, Path],
    checkpoints: Mapping[str, Checkpoint],
    images: NDArray[np.uint8],
    quantized: Quantized | None = None,
    float_input: bool = False,
    ios: int | None = None,
) -> None:
    """Write everything but the model files, which lie in the folder already.

    Args:
        folder: The bundle, still aside.
        target: Its target.
        spec: Input and outputs.
        files: Precision to model file.
        checkpoints: Stage name to the checkpoint it was built from.
        images: Golden faces.
        quantized: What the w8a8 file holds.
        float_input: Whether the files take standardized float values.
        ios: Least iOS version of Core ML files.
    """
    golden: dict[str, NDArray[Any]] = {"images": images}
    entries: dict[str, Any] = {}
    for precision, path in files.items():
        runner = open_file(path, spec=spec, precision=precision)
        for name, values in answers_of(runner, images).items():
            golden[f"{precision}/{name}"] = values
        grids: Grids = {}
        if precision == "w8a8" and quantized is not None:
            whole = [output.name for output in spec.outputs if not quantized.is_float(output.name)]
            grids = {name: quantized.output_grid(name) for name in whole}
        entries[path.name] = {
            "precision": precision,
            **artifacts.entry(path),
            "macs": runner.macs,
            "grids": {name: {"scale": scale, "zero_point": zero} for name, (scale, zero) in grids.items()},
            "float_layers": sorted(quantized.floats) if precision == "w8a8" and quantized is not None else [],
            "golden_runtime": runner.runtime,
        }
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden)
    provenances = [checkpoint.manifest["provenance"] for checkpoint in checkpoints.values()]
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "target": target,
        "name": spec.name,
        "model": to_plain(spec),
        "input": input_contract(spec, target=target, float_input=float_input),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": entries,
        "golden": {"file": GOLDEN, "sha256": sha256_file(folder / GOLDEN), "faces": len(images)},
        "checkpoints": {stage: checkpoint.sha256 for stage, checkpoint in checkpoints.items()},
        "provenance": {stage: checkpoint.manifest["provenance"] for stage, checkpoint in checkpoints.items()},
        "licences": sorted({licence for source in provenances for licence in source["licences"]}),
        "research_only": any(source["research_only"] for source in provenances),
        "versions": versions(),
        "commit": commit(),
        **({} if ios is None else {"ios": ios}),
    }
    write_json(folder / MANIFEST, manifest)
    for name, text in generate(manifest).items():
        write_bytes(folder / name, text.encode())
    write_model_card(folder)


def write_model_card(folder: Path) -> None:
    """Write MODEL_CARD.md from the manifest and, when it is there, the scorecard."""
    manifest = read_bundle(folder)
    path = folder / SCORECARD
    scorecard = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    write_bytes(folder / CARD, model_card(manifest, scorecard).encode())


def input_contract(spec: ModelSpec, *, target: str = "android", float_input: bool = False) -> dict[str, Any]:
    """How the input tensor is filled."""
    grid = lossless_grid_of(spec.mean, spec.std)
    return {
        "name": "image",
        "shape": [1, spec.input_px, spec.input_px, 3],
        "layout": "NHWC",
        "type": "float32" if float_input else "image" if target == "ios" else "uint8",
        "colour_order": "RGB",
        "values": [0, 255],
        "mean": list(spec.mean),
        "std": list(spec.std),
        "scale": None if grid is None else grid[0],
        "zero_point": None if grid is None else grid[1],
    }


def crop_contract(spec: ModelSpec) -> dict[str, Any]:
    """How a face is cut out of a picture."""
    return {
        "shape": "square, not rotated",
        "center": "centre of the box around eyes, nose tip and mouth corners",
        "side": f"{CROP_OVER_LANDMARKS} times the longer side of that box",
        "side_over_landmarks": CROP_OVER_LANDMARKS,
        "side_over_box": DETECTORS["haar"].side,
        "down_over_box": DETECTORS["haar"].down,
        "coordinates": "continuous: (0, 0) is the outer corner of the first pixel",
        "size_px": spec.input_px,
        "resize": {
            "filter": "triangle, at least one source pixel and at least one output pixel wide to either side",
            "weights": "whole numbers that sum to 2048 per output pixel and axis",
            "rounding": "(sum + 2^21) >> 22",
            "border": "repeat the border pixel",
        },
        "orientation": "upright: Exif orientation applied",
    }


def output_contract(output: OutputSpec) -> dict[str, Any]:
    """How an output is read."""
    kind = TASKS[output.task].kind
    return {
        "name": output.name,
        "task": output.task,
        "kind": kind.value,
        "shape": [1, *output.shape],
        "unit": _UNITS.get(kind, "none"),
        "classes": list(output.classes),
        "mean_shape": [list(point) for point in output.mean_shape],
        "threshold": output.threshold,
        "stages": list(output.stages),
        "decode": _DECODE_STAGES if output.stages else _DECODE[kind],
    }


def read_bundle(folder: Path) -> dict[str, Any]:
    """A bundle's manifest.

    Raises:
        ModelError: The folder is no bundle.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_bundle(folder, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or "target" not in manifest:
        raise _no_bundle(folder, "its manifest is of another kind")
    return manifest


def read_golden(folder: Path) -> dict[str, NDArray[Any]]:
    """The golden faces and answers of a bundle, checked against the manifest's digest.

    Raises:
        ModelError: They are missing or altered.
    """
    path = folder / GOLDEN
    recorded = read_bundle(folder).get("golden", {})
    if not path.is_file() or sha256_file(path) != recorded.get("sha256"):
        raise ModelError(
            "missing or altered",
            expected="the golden faces it was built with",
            where=str(path),
            do="Build or copy the bundle again",
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path), do="Build the bundle again") from error


def verify(folder: Path, *, runtime: str | None = None, threads: int = 1) -> Sequence[Verified]:
    """Run a bundle's golden faces through each of its files and compare with the answers it was shipped with.

    Args:
        folder: The bundle.
        runtime: What runs the files; None takes the first that runs their kind.
        threads: CPU threads.

    Raises:
        ModelError: A file is missing, altered or broken.
    """
    manifest, golden = read_bundle(folder), read_golden(folder)
    found = []
    for name, entry in manifest["files"].items():
        runner = open_model(folder / name, runtime=runtime, threads=threads)
        answers = answers_of(runner, golden["images"])
        judged = judge_golden(manifest, name, golden, answers, runtime=runner.runtime)
        found.append(
            Verified(
                file=name,
                precision=str(entry["precision"]),
                bit_identical=judged.bit_identical,
                sqnr_db=min((each.sqnr_db for each in judged.outputs.values()), default=-math.inf),
                passed=judged.passed,
            )
        )
    return found


def judge_golden(manifest: Mapping[str, Any], name: str, golden: Codes, found: Codes, *, runtime: str) -> Judgement:
    """A file's answers to the golden faces against those it was shipped with.

    Args:
        manifest: The bundle's.
        name: The file.
        golden: What `read_golden` gives.
        found: Output name to the answers to all golden faces, as `answers_of` gives them.
        runtime: What computed them.

    Raises:
        ModelError: The golden answers lack this file's.
    """
    entry = manifest["files"][name]
    precision = str(entry["precision"])
    outputs = [output["name"] for output in manifest["outputs"]]
    missing = [output for output in outputs if f"{precision}/{output}" not in golden]
    if missing:
        raise ModelError(f"no {precision} answers of {missing}", expected="one per output", where=GOLDEN)
    return judge(
        {output: golden[f"{precision}/{output}"] for output in outputs},
        found,
        precision=precision,
        grids=grids_of(entry),
        identical=must_be_identical(
            precision, runtime, reference=entry["golden_runtime"], floats=bool(entry["float_layers"])
        ),
    )


def grids_of(entry: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Output name to (scale, zero point) of a file, by its manifest entry."""
    return {name: (float(grid["scale"]), int(grid["zero_point"])) for name, grid in entry["grids"].items()}


def _no_bundle(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"not a bundle ({reason})",
        expected="a folder that `edgeface build` wrote",
        where=str(folder),
        do="Build it: edgeface build --target android",
    )
