"""MODEL_CARD.md: what a bundle's model predicts, what it learnt from, what it may be used for, how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from targets.meaning import MEANING

_PLATFORM = {
    "android": "Android (TFLite, run by LiteRT)",
    "ios": "iOS (Core ML)",
    "openvino": "Intel hardware (OpenVINO)",
    "onnx": "ONNX Runtime",
}

# Target to the lines that run a bundle's model; FILE is its first file, IOS its least iOS version.
_RUN = {
    "android": """\
Add `EdgeFace.kt` and one of the `.tflite` files to the app, and `org.tensorflow:tensorflow-lite` 2.16 or newer.

```kotlin
EdgeFace(model).use { network ->  // a direct ByteBuffer of FILE
    val answers = network.run(bitmap, FaceCrop.aroundBox(left, top, width, height))
}
```""",
    "ios": """\
Add `EdgeFace.swift` and one of the `.mlpackage` folders to the Xcode project. iOS IOS or newer.

```swift
let model = try MLModel(contentsOf: MLModel.compileModel(at: url))  // url of FILE
let crop = FaceCrop(aroundBoxLeft: left, top: top, width: width, height: height)
let answers = try EdgeFace(model: model).run(FacePicture(cgImage), crop)
```""",
    "openvino": """\
```sh
pip install openvino numpy pillow
python edgeface_example.py FILE portrait.jpg LEFT TOP WIDTH HEIGHT
g++ -std=c++17 -O2 -DEDGEFACE_WITH_OPENVINO edgeface_example.cpp -lopenvino -o edgeface_example
./edgeface_example FILE portrait.ppm LEFT TOP WIDTH HEIGHT
```""",
    "onnx": """\
```sh
pip install onnxruntime numpy pillow
python edgeface_example.py FILE portrait.jpg LEFT TOP WIDTH HEIGHT
```""",
}


def model_card(manifest: Mapping[str, Any], scorecard: Mapping[str, Any] | None = None) -> str:
    """The text of MODEL_CARD.md.

    Args:
        manifest: A bundle's manifest, of any target.
        scorecard: The content of scorecard.json, when it has been measured.
    """
    outputs: Sequence[Mapping[str, Any]] = manifest["outputs"]
    names = ", ".join(output["name"] for output in outputs)
    lines = [
        f"# {manifest['name']}",
        "",
        f"A face network for {_PLATFORM[manifest['target']]}: one pass over a crop of "
        f"{manifest['model']['input_px']} pixels answers {names}.",
        "",
        _terms(manifest),
        "",
        "## What it predicts",
        "",
        "| output | shape | classes | how it is read |",
        "|---|---|---|---|",
        *(_prediction(output) for output in outputs),
        "",
        "## Files",
        "",
        "| file | precision | bytes |",
        "|---|---|---:|",
        *(f"| {name} | {_precision(entry)} | {entry['size_bytes']} |" for name, entry in manifest["files"].items()),
        "",
        "`manifest.json` holds the exact pre- and post-processing, `golden.npz` synthetic faces with the answers each "
        "file must give.",
        "",
        "## Input",
        "",
        *_input(manifest),
        "",
        "## How to run it",
        "",
        _how_to_run(manifest),
        "",
        "LEFT, TOP, WIDTH and HEIGHT are a detector's box in pixels, from above the brows to the chin. "
        "`edgeface predict` does all of it: finds the faces of a picture and draws the answers.",
        "",
        "## What the answers mean, and what they do not",
        "",
        *_meanings(outputs),
        "",
        "## Training data and licences",
        "",
        *(f"- {licence}" for licence in manifest["licences"] or ["none recorded"]),
        "",
        _terms(manifest),
        "",
        *(
            f"- {stage}: `{source['command']}`, seed {source['seed']}"
            for stage, source in manifest["provenance"].items()
        ),
        "",
        "## Measured",
        "",
        *_measured(scorecard),
        "",
        "## Limits",
        "",
        "- One face per crop. Crops that are cut otherwise than manifest.json says lose accuracy.",
        "- Measured on the corpora named here; light, cameras, ages and skin tones that are rare in them do worse.",
        "- Answers are given for any picture, a face or not: find the face first.",
        "- A probability is what the network gives, not how often it is right: it was not calibrated.",
        "",
        "## Made with",
        "",
        *(f"- {package} {version}" for package, version in manifest["versions"].items()),
        *(f"- {stage} weights sha256 `{digest}`" for stage, digest in manifest["checkpoints"].items()),
        "",
    ]
    return "\n".join(lines)


def _terms(manifest: Mapping[str, Any]) -> str:
    if manifest["research_only"]:
        return "**Research only.** At least one corpus forbids use in products: do not ship these files."
    return "No corpus this model was trained on is marked as for research only."


def _prediction(output: Mapping[str, Any]) -> str:
    shape = " × ".join(map(str, output["shape"]))
    classes = ", ".join(str(label).replace("_", " ") for label in output["classes"])
    threshold = f" ({output['threshold']:g})" if "threshold" in output["decode"] else ""
    return f"| {output['name']} | {shape} | {classes} | {output['decode']}{threshold} |"


def _precision(entry: Mapping[str, Any]) -> str:
    layers = entry.get("float_layers", [])
    return f"{entry['precision']}, in float: {', '.join(layers)}" if layers else str(entry["precision"])


def _input(manifest: Mapping[str, Any]) -> list[str]:
    given, crop = manifest["input"], manifest["crop"]
    resize = crop["resize"]
    mean, std = (", ".join(f"{value:g}" for value in given[key]) for key in ("mean", "std"))
    standardized = f"(x − mean) / std with mean {mean} and std {std} of {given['colour_order']}"
    values = {
        "float32": f"float32 {given['shape']}: {standardized}, done by the caller",
        "image": f"an RGB image; {standardized} is done inside the file",
        "uint8": f"uint8 {given['shape']} ({given['layout']}), 0 to 255; {standardized} is done inside the file",
    }[given["type"]]
    return [
        f"- `{given['name']}`: {values}.",
        f"- Colour order {given['colour_order']}; {crop['orientation']}.",
        f"- Crop: {crop['shape']}; {crop['center']}; side {crop['side']}; {crop['coordinates']}.",
        f"- Resized to {crop['size_px']} pixels: {resize['filter']}; {resize['weights']}; {resize['rounding']}; "
        f"{resize['border']}.",
    ]


def _how_to_run(manifest: Mapping[str, Any]) -> str:
    files = {entry["precision"]: name for name, entry in manifest["files"].items()}
    name = files.get("w8a8") or next(iter(files.values()), "the model")
    return _RUN[manifest["target"]].replace("FILE", name).replace("iOS IOS", f"iOS {manifest.get('ios', 17)}")


def _meanings(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [f"- **{output['name']}**: {MEANING[output['task']]}" for output in outputs if output["task"] in MEANING]
    if not told:
        return ["Nothing here judges a person: the answers describe the picture."]
    return [
        *told,
        "",
        "Not for decisions about a person: access, prices, hiring, policing, credit, medicine. Tell people that their "
        "picture is judged, and measure the errors on the people the app serves before relying on an answer.",
    ]


def _measured(scorecard: Mapping[str, Any] | None) -> list[str]:
    if scorecard is None:
        return ["Not measured yet: `edgeface eval` on this bundle."]
    metrics: dict[str, str] = {}
    for row in scorecard["rows"]:
        metrics |= {task: cell["metric"] for task, cell in row["tasks"].items()}
    tasks = sorted(metrics)
    skipped = sum(scorecard["skipped"].values())
    conditions = scorecard["conditions"]
    lines = [
        f"On {scorecard['source']}: {scorecard['samples']} faces, {skipped} skipped. {conditions['date']}, "
        f"{conditions['machine']['model']}.",
        "",
        f"| model | runtime | {' | '.join(f'{task}: {metrics[task]}' for task in tasks)} |",
        f"|---|---|{'---:|' * len(tasks)}",
    ]
    for row in scorecard["rows"]:
        if not row["tasks"]:
            lines.append(f"| {row['model']} | NOT_RUN: {row['reason']} |{' |' * len(tasks)}")
            continue
        cells = [_figure(row["tasks"][task]) if task in row["tasks"] else "" for task in tasks]
        lines.append(f"| {row['model']} | {row['runtime']} {row['precision']} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Accuracies are from 0 to 1, errors in the unit their names say. In brackets the change from the teacher, in "
        "points or percent of years, with half the width of its 95 % interval. More in `scorecard.json`.",
        *_groups(scorecard),
    ]


def _figure(cell: Mapping[str, Any]) -> str:
    text = f"{cell['value']:.4g}"
    ends = cell.get("interval_teacher")
    if cell.get("delta_teacher") is None or ends is None:
        return text
    return f"{text} ({cell['delta_teacher']:+.2f} ±{(ends[1] - ends[0]) / 2:.2f})"


def _groups(scorecard: Mapping[str, Any]) -> list[str]:
    """What the file that ships scores in each group of faces, where their labels tell groups."""
    last = next((row for row in reversed(scorecard["rows"]) if row["tasks"]), None)
    lines = []
    for each in scorecard.get("subgroups", ()):
        for gap in each["rows"]:
            if last is not None and (gap["model"], gap["runtime"]) == (last["model"], last["runtime"]):
                pairs = zip(each["groups"], gap["values"], strict=True)
                told = [f"{group['name']} {value:.4g} ({group['n']})" for group, value in pairs if value is not None]
                change = gap["gap_change_teacher"]
                than = "" if change is None else f", {change:+.2g} on the teacher's"
                gone = "" if gap["gap"] is None else f"; gap {gap['gap']:.2g}{than}"
                few = ", ".join(f"{group['name']} ({group['n']})" for group in each.get("few", ()))
                gone += f"; too few faces to tell: {few}" if few else ""
                lines.append(f"- {each['task']} ({each['metric']}) by {each['by']}: {', '.join(told)}{gone}")
    if not lines:
        return []
    return ["", f"`{last['model'] if last else ''}` by group, with the number of faces:", "", *lines]
