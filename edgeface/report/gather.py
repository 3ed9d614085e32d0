"""What a report shows beside its scorecards: times, layers, example faces, and where everything comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import EdgefaceError, MissingToolError, UsageError
from edgeface.files import read_json
from edgeface.report.html import SHOWN, Examples, Origin, Speed, example_faces
from edgeface.report.scorecard import FAKE_QUANT, FILE, STUDENT, TEACHER, Scorecard

if TYPE_CHECKING:
    from edgeface.evaluate import Runner
    from quantize.layers import LayerError

STAGES = {TEACHER: "teacher", STUDENT: "student", FAKE_QUANT: "qat"}
MANIFEST = "manifest.json"
RUNS = 200  # timed runs of each model: seconds in all, and enough for a median
LAYER_FACES = 64
PICTURE_PX = 192  # of example faces: twice what the page shows on a phone
# Runtimes that compute the answers of a file without being what ships it.
_NOT_TIMED = {"mil": "edgeface's own executor says nothing of Core ML's speed"}


def place_of(role: str, model: str, *, run: Path, bundles: Sequence[Path]) -> Path | None:
    """Where a row's model lies; None for devices and what is not there."""
    if role in STAGES:
        return run / STAGES[role]
    if role == FILE:
        return next((bundle / model for bundle in bundles if (bundle / model).exists()), None)
    return None


def measure_speed(card: Scorecard, *, run: Path, bundles: Sequence[Path], runs: int = RUNS) -> Speed:
    """Milliseconds a face of every model of a scorecard that this machine's own kernels run, interleaved."""
    from targets.bench import bench

    wanted: dict[tuple[str, str], Path] = {}
    not_timed: dict[str, str] = {}
    for row in card.rows:
        place = place_of(row.role, row.model, run=run, bundles=bundles)
        if row.role == FAKE_QUANT or not row.tasks or place is None:
            continue
        if row.runtime in _NOT_TIMED:
            not_timed[row.runtime] = _NOT_TIMED[row.runtime]
            continue
        wanted[row.model, row.runtime] = place
    if not wanted:
        return Speed(median_ms={}, conditions="", not_timed=not_timed)
    done = bench([(str(path), runtime, None) for (_, runtime), path in wanted.items()], threads=1, runs=runs)
    times = {key: row.median_ms for key, row in zip(wanted, done.rows, strict=True)}
    machine: Any = done.conditions["cpu"]
    words = (
        f"Milliseconds are medians of {done.conditions['runs']} runs, interleaved, one thread of {machine['model']}; "
        "without cutting the crop."
    )
    return Speed(median_ms=times, conditions=words, not_timed=not_timed)


def check_examples(source: str) -> None:
    """Refuse pictures that may not be shown.

    Raises:
        UsageError: They are neither drawn nor the user's own.
    """
    from edgeface.data.sources import parse_source

    if parse_source(source).corpus not in SHOWN:
        raise UsageError(
            repr(source),
            expected="synthetic:N or folder:DIR: pictures of a corpus never stand in a report",
            where="--faces",
        )


def examples(
    open_runner: Callable[[], Runner], source: str, *, model: str, root: Path, count: int = 10
) -> Examples | None:
    """The first faces of a source with a model's answers, in pictures larger than the model's own input.

    Returns:
        None where the model's tool-kit is missing.

    Raises:
        UsageError: Pictures of this source may not be shown.
    """
    import numpy as np

    from edgeface.data.pack import pack
    from edgeface.data.sources import open_source
    from edgeface.evaluate import evaluate

    check_examples(source)
    try:
        runner = open_runner()
    except MissingToolError:
        return None
    corpus = open_source(source, root=root)
    corpus = corpus.select(np.arange(min(count, len(corpus))))
    scored = evaluate(runner, pack(corpus, px=runner.spec.input_px, margin=1.0), model=model)
    large = pack(corpus, px=max(PICTURE_PX, runner.spec.input_px), margin=1.0)
    return Examples(faces=example_faces(scored, large, count=count), model=model, source=source)


def origins(run: Path | None, bundles: Sequence[Path]) -> list[Origin]:
    """What the manifests of checkpoints and bundles say of their making."""
    folders = [] if run is None else [run / stage for stage in STAGES.values()]
    found = []
    for folder in (*folders, *bundles):
        path = folder / MANIFEST
        if path.is_file():
            found.append(_origin(folder, read_json(path), bundle=folder in bundles))
    return found


def _origin(folder: Path, manifest: Mapping[str, Any], *, bundle: bool) -> Origin:
    made = manifest if bundle else manifest.get("provenance", {})
    network = manifest.get("network", {})
    facts = [
        ("Network", ", ".join(f"{key} {value}" for key, value in network.items() if value not in ("", 0, 0.0))),
        ("Made from", ", ".join(f"{kind} {digest}" for kind, digest in _parents(manifest).items())),
        ("Training", _trained(manifest.get("training", {}))),
        ("Command", made.get("command", "")),
        ("Commit", made.get("commit", "")),
        ("Seed", made.get("seed", "")),
        ("Licences", "; ".join(made.get("licences", ()))),
        ("Terms", "for research only" if made.get("research_only") else ""),
        ("Versions", ", ".join(f"{key} {value}" for key, value in made.get("versions", {}).items())),
    ]
    files = {
        name: entry if isinstance(entry, str) else entry.get("sha256", "")
        for name, entry in manifest.get("files", {}).items()
    }
    kind = f"bundle for {manifest.get('target', '')}" if bundle else manifest.get("kind", "")
    return Origin(
        name=f"{kind}: {folder.name}" if bundle else f"{kind} checkpoint",
        facts=[(label, str(text)) for label, text in facts if text not in ("", None)],
        files=files,
    )


def _trained(training: Mapping[str, Any]) -> str:
    """How long a stage was trained, and where it went on after it had been stopped."""
    if not training:
        return ""
    text = f"{training['steps']:,} steps, {training['samples']:,} samples, {training['seconds']:,.0f} s"
    stops = ", ".join(f"{step:,}" for step in training.get("resumed_at", ()))
    return f"{text}; stopped, and went on at step {stops}" if stops else text


def _parents(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    parents: Mapping[str, Any] = manifest.get("made_from") or manifest.get("checkpoints") or {}
    return parents


def run_layer_errors(run: Path, source: str, *, root: Path) -> list[LayerError] | str:
    """What 8 bits cost each layer of a run's int8 student, on some faces of a source; or why that is not known."""
    import numpy as np

    from edgeface.checkpoint import load_checkpoint
    from edgeface.data.crops import evaluation_crops
    from quantize.layers import layer_errors
    from quantize.qat import load_qat

    if not (run / STAGES[FAKE_QUANT] / MANIFEST).is_file():
        return "the run has no int8 student"
    checkpoint = load_checkpoint(run / STAGES[FAKE_QUANT])
    try:
        quantized = load_qat(checkpoint).quantized()
    except EdgefaceError as error:
        return str(error)
    pictures = evaluation_crops(source, px=checkpoint.model.input_px, root=root).images[:LAYER_FACES]
    return layer_errors(quantized.graph, quantized, np.asarray(pictures))
