"""The bundle: the folder an app team receives.

NAME.PRECISION.SUFFIX   one model per precision: .tflite, .mlpackage, .xml with its .bin, .onnx
manifest.json           pre- and post-processing as data, digests, where everything comes from
golden.npz              synthetic faces and the raw outputs of each file, so that a bundle can check itself anywhere
EdgeFace.kt             the same pre- and post-processing in the language of the target: Kotlin, Swift, Python and C++
MODEL_CARD.md           licences, limits, measured figures
scorecard.json          measured task by task; written by `edgeface build` when the data is there
sbom.cdx.json           the tool-chain: packages, versions and licences
manifest.sig            an ed25519 signature over manifest.json, which names every file's sha256; with --sign alone
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.arrays import read_arrays
from edgeface.checkpoint import Checkpoint, read_model_spec
from edgeface.config import to_plain
from edgeface.data.finder import DETECTORS
from edgeface.errors import ConfigError, ModelError
from edgeface.files import is_plain_name, read_json, sha256_file, write_bytes, write_json
from edgeface.models.heads import HEATMAP_SPAN
from edgeface.precision import PRECISIONS
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
from targets.sbom import write_sbom
from targets.signing import seal

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
_DECODE_HEATMAP = (
    "heatmaps, (rows, columns, points): of each point softmax over all cells, then the expected x and y of the cells' "
    "centres, cell i of n at 0.5 + heatmap_span * ((i + 0.5) / n - 0.5) crop sides; times the crop's side, plus its "
    "corner"
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
        "sbom": write_sbom(
            folder, name=spec.name, target=target, files={name: entry["sha256"] for name, entry in entries.items()}
        ),
        "commit": commit(),
        **({} if ios is None else {"ios": ios}),
    }
    write_json(folder / MANIFEST, manifest)
    for name, text in generate(manifest).items():
        write_bytes(folder / name, text.encode())
    write_model_card(folder)
    seal(folder)


def write_model_card(folder: Path) -> None:
    """Write MODEL_CARD.md from the manifest and, when it is there, the scorecard."""
    manifest = read_bundle(folder)
    path = folder / SCORECARD
    scorecard = read_json(path) if path.is_file() else None
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
        "heatmap_span": HEATMAP_SPAN if output.heatmap else 0.0,
        "decode": _DECODE_HEATMAP if output.heatmap else _DECODE_STAGES if output.stages else _DECODE[kind],
    }


def read_bundle(folder: Path) -> dict[str, Any]:
    """A bundle's manifest.

    Raises:
        ModelError: The folder is no bundle.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise _no_bundle(folder, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or "target" not in manifest:
        raise _no_bundle(folder, "its manifest is of another kind")
    if fault := _manifest_fault(manifest):
        raise _no_bundle(folder, f"its manifest {fault}")
    return manifest


def _manifest_fault(manifest: Mapping[str, Any]) -> str:
    """What of the parts that are read by place has another form than `write_bundle` gave it; "" when nothing has."""
    files, golden, outputs = (manifest.get(key) for key in ("files", "golden", "outputs"))
    if not isinstance(manifest["target"], str) or manifest["target"] not in PRECISIONS:
        return f"names target {str(manifest['target'])[:40]!r}"
    if not isinstance(files, dict) or not files:
        return "lists no files"
    if not isinstance(golden, dict) or golden.get("file") != GOLDEN:
        return f"names no {GOLDEN}"
    if not isinstance(outputs, list) or not all(
        isinstance(each, dict) and _is_text(each.get("name")) for each in outputs
    ):
        return "lists no outputs"
    for name, entry in files.items():
        if not is_plain_name(name):
            return f"names a file {name!r}"
        well_formed = (
            isinstance(entry, dict)
            and all(_is_text(entry.get(key)) for key in ("precision", "sha256", "golden_runtime"))
            and isinstance(entry.get("float_layers"), list)
            and all(map(_is_text, entry["float_layers"]))
            and isinstance(entry.get("grids"), dict)
            and all(map(_is_grid, entry["grids"].values()))
        )
        if not well_formed:
            return f"says of {name!r} neither precision, digest, grids nor what answered the golden faces"
    try:
        spec = read_model_spec(manifest.get("model"), where="model")
    except ConfigError as error:
        return f"describes no network ({error})"
    return _unlike(manifest, _form(spec, manifest), where="")


def _form(spec: ModelSpec, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_bundle` writes for a network of this kind, as far as it follows from the network."""
    given, licences = manifest.get("input"), manifest.get("licences")
    floats = isinstance(given, dict) and given.get("type") == "float32"
    return {
        "name": spec.name,
        "input": input_contract(spec, target=str(manifest["target"]), float_input=floats),
        "crop": crop_contract(spec),
        "outputs": [output_contract(output) for output in spec.outputs],
        "files": {name: {"size_bytes": 0} for name in manifest["files"]},
        "golden": {"faces": 0},
        "commit": "a word or none",
        "checkpoints": dict.fromkeys(_keys(manifest, "checkpoints"), "some words"),
        "provenance": {stage: {"command": "some words", "seed": 0} for stage in _keys(manifest, "provenance")},
        "versions": dict.fromkeys(_keys(manifest, "versions"), "some words"),
        "licences": ["some words"] * (len(licences) if isinstance(licences, list) else 0),
        "research_only": False,
    }


def _keys(manifest: Mapping[str, Any], key: str) -> list[str]:
    value = manifest.get(key)
    return list(value) if isinstance(value, dict) else []


def _unlike(value: Any, form: Any, *, where: str) -> str:
    """Where a value has another form than it should; "" when it has the same. It may hold more.

    Mappings have the form's keys and lists its length. Whole numbers and words without blanks, which generated code is
    made of, are equal, except 0, which stands for any, and so are other numbers outside the crop; texts are printable.
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"has no table {where!r}"
        missing = [key for key in form if key not in value]
        if missing:
            return f"lacks {f'{where}.{missing[0]}'.lstrip('.')!r}"
        found = (_unlike(value[key], form[key], where=f"{where}.{key}".lstrip(".")) for key in form)
        return next(filter(None, found), "")
    if isinstance(form, list):
        if not isinstance(value, list) or len(value) != len(form):
            return f"has no list of {len(form)} at {where!r}"
        pairs = enumerate(zip(value, form, strict=True))
        return next(filter(None, (_unlike(each, of, where=f"{where}[{place}]") for place, (each, of) in pairs)), "")
    if isinstance(form, str):
        same = _is_text(value) and (" " in form or value == form)
    elif isinstance(form, bool):
        same = isinstance(value, bool)
    elif isinstance(form, int):
        same = type(value) is int and (value == form or form == 0)
    elif form is None:
        same = value is None
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
        # How a crop lies about a face may change from one edgeface to the next; all else follows from the network.
        same = number and (value == form or where.startswith("crop."))
    return "" if same else f"says {str(value)[:40]!r} at {where!r}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_grid(grid: object) -> bool:
    if not isinstance(grid, dict):
        return False
    scale, zero = grid.get("scale"), grid.get("zero_point")
    return isinstance(scale, float) and 0.0 < scale < math.inf and type(zero) is int and -128 <= zero <= 255


_LARGEST = float(np.finfo(np.float64).max)  # JSON's whole numbers may be larger


def read_golden(folder: Path) -> dict[str, NDArray[Any]]:
    """The golden faces and answers of a bundle, checked against the manifest's digest.

    Raises:
        ModelError: They are missing or altered.
    """
    path = folder / GOLDEN
    recorded = read_bundle(folder)["golden"]
    if not path.is_file() or sha256_file(path) != recorded.get("sha256"):
        raise ModelError(
            "missing or altered",
            expected="the golden faces it was built with",
            where=str(path),
            do="Build or copy the bundle again",
        )
    try:
        arrays = read_arrays(path, limit=limits.GOLDEN_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path), do="Build the bundle again") from error
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        found = "no pictures" if images is None else f"pictures {images.dtype} {images.shape}"
        raise ModelError(found, expected="uint8 (N, H, W, 3)", where=str(path), do="Build the bundle again")
    if short := [name for name, values in arrays.items() if values.shape[:1] != images.shape[:1]]:
        raise ModelError(f"{short[0]!r} without a row for each picture", where=str(path), do="Build the bundle again")
    return arrays


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
