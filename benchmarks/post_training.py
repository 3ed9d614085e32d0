"""Quantization-aware training against quantization without training, for each student and seed.

    EDGEFACE_DATA=FOLDER python -m benchmarks.post_training RUN... [--out benchmarks/results/post_training.json]

Each RUN is a folder NAME-SEED with student/ and qat/, as benchmarks.students leaves them. A row is one method on one
run; rows that OUT already holds for the same checkpoints are kept, so the command can be repeated while runs arrive.

The figure of a row is the mean over tasks of the relative worsening of each task's error against the float student of
the same run: error is NME for landmarks and 1 − accuracy for classes, so 5 % says that errors grew by a twentieth;
below 0 % they fell. `mtfl@val` chooses (the best method without training), `mtfl@test` is only reported.

Every method calibrates on the same 1280 faces of mtfl@train, as users cut them, in 20 batches. NNCF quantizes an
OpenVINO file of the float student; its accuracy control measures on 1000 other training faces and may lose a tenth of a
point of the mean score. NNCF's results run in OpenVINO with float32 for what is not int8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.stages import load_network
from edgeface.checkpoint import Checkpoint, load_checkpoint
from edgeface.data.pack import Pack
from edgeface.data.sources import data_root
from edgeface.evaluate import Outputs, Runner, decode, evaluate, evaluation_pack
from edgeface.files import write_json
from edgeface.metrics import main_metric, point_errors
from edgeface.models.runner import TorchRunner
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import ModelSpec
from edgeface.tasks import TASKS, Kind
from quantize.baselines import METHODS, nncf_accuracy_controlled, nncf_bias_corrected, post_training
from quantize.graph import Graph, trace
from quantize.qat import load_qat

TRAIN, CHOOSES, REPORTED = "mtfl@train", "mtfl@val", "mtfl@test"
BATCHES, BATCH, CONTROL = 20, 64, 1000
MAX_DROP = 0.001
NNCF = ("nncf_bias_correction", "nncf_accuracy_control")
WITHOUT_TRAINING = (*METHODS, *NNCF)


class CompiledRunner:
    """An OpenVINO model in memory, on faces."""

    runtime = "openvino"
    precision = "nncf"

    def __init__(self, compiled: Any, spec: ModelSpec) -> None:
        self.spec = spec
        self._request = compiled.create_infer_request()
        self._places = {next(iter(port.names)): place for place, port in enumerate(compiled.outputs)}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        parts: dict[str, list[NDArray[np.float32]]] = {output.name: [] for output in self.spec.outputs}
        for picture in batch:
            answers = self._request.infer([picture[None]])
            for name, part in parts.items():
                part.append(answers[self._places[name]].copy())
        return {name: np.concatenate(part) for name, part in parts.items()}


def errors(runner: Runner, pack: Pack) -> dict[str, float]:
    """Task to error: NME as a share, or 1 − accuracy."""
    return {
        task: error(main_metric(TASKS[task], scores), scores)
        for task, scores in evaluate(runner, pack, batch=256).tasks.items()
    }


def error(metric: str, scores: Mapping[str, float]) -> float:
    return float(scores[metric]) / 100 if metric.endswith("_percent") else 1.0 - float(scores[metric])


def worsening(found: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean over tasks of the relative growth of the error, in percent."""
    return 100 * statistics.mean(found[task] / reference[task] - 1.0 for task in reference)


def calibration_faces(pack: Pack) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Faces to calibrate on; other faces for accuracy control, with their labels."""
    order = np.random.default_rng(0).permutation(len(pack.keys))
    chosen, control = np.sort(order[: BATCHES * BATCH]), np.sort(order[BATCHES * BATCH :][:CONTROL])
    labels = {task: values[control] for task, values in pack.labels.items()}
    return np.ascontiguousarray(pack.images[chosen]), np.ascontiguousarray(pack.images[control]), labels


def face_by_face(answers: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """(N,) mean over tasks of 1 − error, of faces that are labelled for all of them."""
    shares = [
        point_errors(answers[task], labels[task]).mean(1) / 100
        if TASKS[task].kind is Kind.LANDMARKS
        else np.asarray(answers[task] != labels[task], np.float64)
        for task in answers
    ]
    return 1.0 - np.mean(shares, axis=0)


def compile_float(model: Any) -> Any:
    import openvino

    return openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )


def by_nncf(method: str, graph: Graph, spec: ModelSpec, train: Pack) -> Runner:
    import openvino

    from targets.openvino import write

    faces, control, labels = calibration_faces(train)
    pictures = [face[None] for face in faces]

    def face_scores(compiled: Any, places: Sequence[int]) -> list[float]:
        answers = decode(spec, CompiledRunner(compiled, spec).run(control[places]))
        return face_by_face(answers, {task: labels[task][places] for task in answers}).tolist()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.xml"
        write({"fp32": path}, graph=graph, quantized=None, model=spec)
        model = openvino.Core().read_model(path)
        if method == "nncf_bias_correction":
            quantized = nncf_bias_corrected(model, pictures)
        else:
            quantized = nncf_accuracy_controlled(
                model, pictures, control=list(control[:, None]), score=face_scores, max_drop=MAX_DROP
            )
        return CompiledRunner(compile_float(quantized), spec)


def by_method(method: str, student: Checkpoint, qat: Checkpoint, train: Callable[[], Pack]) -> Runner:
    spec = student.model
    if method == "qat":
        return TorchRunner(load_qat(qat), spec, precision="fake-quant")
    network: nn.Module = load_network(student).eval()
    if method == "fp32":
        return TorchRunner(network, spec)
    graph = trace(load_network(student).eval())
    if method in NNCF:
        return by_nncf(method, graph, spec, train())
    images = torch.from_numpy(calibration_faces(train())[0]).permute(0, 3, 1, 2).float()
    batches: Sequence[Tensor] = images.contiguous().split(BATCH)
    return TorchRunner(post_training(graph, batches, method=method), spec, precision="fake-quant")


def rows_of(
    run: Path, methods: Sequence[str], *, before: Sequence[Mapping[str, Any]], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Give `keep` one row per method and the float student's, old ones as they are."""
    student, qat = load_checkpoint(run / "student"), load_checkpoint(run / "qat")
    root, spec = data_root(), student.model
    name, _, seed = run.name.rpartition("-")
    reference: dict[str, dict[str, float]] = {}
    for method in ("fp32", *methods):
        made_from = qat.sha256 if method == "qat" else student.sha256
        same = [row for row in before if row["method"] == method and row["checkpoint"] == made_from]
        if same:
            row = dict(same[0])
        else:
            started = time.perf_counter()
            runner = by_method(method, student, qat, lambda: evaluation_pack(TRAIN, spec, root=root))
            made_s = time.perf_counter() - started
            row = {"student": name, "seed": int(seed), "method": method, "checkpoint": made_from}
            row |= {"made_s": round(made_s, 1), "commit": commit()}
            row["errors"] = {
                source: errors(runner, evaluation_pack(source, spec, root=root)) for source in (CHOOSES, REPORTED)
            }
        if method == "fp32":
            reference = row["errors"]
        row["worsening_percent"] = {source: worsening(row["errors"][source], reference[source]) for source in reference}
        keep(row)
        print(json.dumps({key: row[key] for key in ("student", "seed", "method", "worsening_percent")}), flush=True)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per student and method: mean and standard deviation over seeds."""
    found = []
    for student in dict.fromkeys(row["student"] for row in rows):
        for method in ("qat", *WITHOUT_TRAINING):
            some = [row for row in rows if (row["student"], row["method"]) == (student, method)]
            if not some:
                continue
            line: dict[str, Any] = {"student": student, "method": method, "seeds": sorted(row["seed"] for row in some)}
            for source in (CHOOSES, REPORTED):
                values = [row["worsening_percent"][source] for row in some]
                line[source] = {
                    "mean": statistics.mean(values),
                    "sd": statistics.stdev(values) if len(values) > 1 else None,
                }
            found.append(line)
    return found


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table, with one sentence per student on whether training pays."""
    table = ["| student | method | seeds | mtfl@val, % | mtfl@test, % |", "|---|---|---|---|---|"]
    verdicts = []
    for student in dict.fromkeys(line["student"] for line in lines):
        own = [line for line in lines if line["student"] == student]
        rivals = [line for line in own if line["method"] != "qat"]
        for line in own:
            cells = [student, line["method"], str(len(line["seeds"]))]
            table.append("| " + " | ".join([*cells, *(_spread(line[s]) for s in (CHOOSES, REPORTED))]) + " |")
        trained = next((line for line in own if line["method"] == "qat"), None)
        if trained is None or not rivals:
            continue
        best = min(rivals, key=lambda line: line[CHOOSES]["mean"])
        gaps = {source: best[source]["mean"] - trained[source]["mean"] for source in (CHOOSES, REPORTED)}
        parts = [f"{'better' if gap > 0 else 'NOT better'} by {gap:+.2f} points on {s}" for s, gap in gaps.items()]
        verdicts.append(f"* {student}: training is {', '.join(parts)} than {best['method']}, the best without it.")
    return "\n".join([*table, "", *verdicts])


def _spread(cell: Mapping[str, float | None]) -> str:
    return f"{cell['mean']:+.2f}" + ("" if cell["sd"] is None else f" ± {cell['sd']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/post_training.json"))
    arguments = parser.parse_args()
    before = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.is_file() else []
    rows = {(row["student"], row["seed"], row["method"]): row for row in before}
    torch.set_num_threads(1)

    def keep(row: dict[str, Any]) -> None:
        rows[row["student"], row["seed"], row["method"]] = row
        lines = summary(sorted(rows.values(), key=lambda each: (each["student"], each["seed"])))
        machine = cpu()
        conditions = {
            "machine": machine,
            "versions": versions(),
            "commit": commit(),
            "threads": 1,
            "calibration_faces": BATCHES * BATCH,
            "control_faces": CONTROL,
            "max_drop": MAX_DROP,
        }
        write_json(
            arguments.out, {"schema": 1, "rows": list(rows.values()), "summary": lines, "conditions": conditions}
        )
        arguments.out.with_suffix(".md").write_text(
            "# Training under fake-quantization against quantization without training\n\n"
            "`python -m benchmarks.post_training RUN...`\n\n"
            "Mean over the tasks (landmarks, gender, smile, glasses, pose) of the relative growth of each task's "
            "error, NME or 1 − accuracy, against the float student of the same seed; mean ± standard deviation over "
            f"seeds. Below 0 the error fell. Calibrated on {BATCHES * BATCH} faces of {TRAIN}; {CHOOSES} names the "
            f"best method without training, {REPORTED} is only reported. Training under fake-quantization goes on "
            "learning from teacher and labels for two epochs, so part of what it gains is training as such, not the "
            f"grid. On {machine['model']}, {machine['cores']} cores; versions and the commit of each row stand in the "
            f"JSON.\n\n{markdown(lines)}\n",
            encoding="utf-8",
        )

    # NNCF takes most of the time, so the rest of the table comes first.
    for methods in (("qat", *METHODS), NNCF):
        for run in arguments.runs:
            rows_of(run, methods, before=list(rows.values()), keep=keep)


if __name__ == "__main__":
    main()
