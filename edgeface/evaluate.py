"""Scoring: one Runner protocol, one path from pictures to task metrics, whatever the runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.data.pack import in_batches
from edgeface.errors import DataError, ModelError
from edgeface.groups import group_columns
from edgeface.metrics import Scores, agreement, score, why_absent
from edgeface.models.heads import heatmap_points, stage_years
from edgeface.specs import DERIVED, ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind
from edgeface.verification import draw_pairs, read_pairs, score_pairs

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

Outputs = dict[str, NDArray[np.float32]]
_ROWS = 1 << 12  # of raw outputs that are decoded at a time: probabilities take several times their memory
PUBLISHED, DRAWN = "published", "drawn"  # whose pairs of pictures identity is scored on


class Runner(Protocol):
    """Anything that turns pictures into a model's raw outputs.

    Attributes:
        spec: The model's input and outputs.
        runtime: One of specs.RUNTIMES.
        precision: "fp32", "fp16", "w8a32", "w8a8", "fake-quant", …
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def runtime(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """Raw outputs of a batch.

        Args:
            batch: (B, H, W, 3) RGB, 0 to 255, H = W = spec.input_px.

        Returns:
            Output name to (B, *shape) float32: logits, or landmark offsets from the mean shape in crop sides.
            Integer outputs are dequantized.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one model answered on one source, and how well.

    Attributes:
        model: The model as the user named it.
        spec: Its input and outputs.
        runtime: What ran it.
        precision: In which arithmetic.
        source: The source as the user named it.
        licence: The corpus's terms.
        research_only: Whether its pictures may leave the folder they are in.
        keys: Sample ids, in row order.
        skipped: Reason to the ids of the samples that were left out.
        outputs: Raw outputs by name, (N, *shape).
        predictions: Task name to decoded answers, in the forms of metrics.py.
        labels: Task name to labels, of the tasks the model and the source share.
        tasks: Task name to its metrics.
        absent: Task name to why its main metric is not among them.
        agreement: Task name to agreement with the teacher; empty without one.
        people: Who is on each sample, in row order.
        groups: Ways to divide the samples, as groups.group_columns names them: each to a group per sample, "" unknown.
        hardware: What computed it, such as "CPU" or "GPU: NVIDIA H200".
        derived: Tasks that were scored on labels derived from others (edgeface.data.derive).
        pairs: Where the pairs came from that identity was scored on: PUBLISHED, DRAWN, or a file; "" without any.
    """

    model: str
    spec: ModelSpec
    runtime: str
    precision: str
    source: str
    licence: str
    research_only: bool
    keys: Sequence[str]
    skipped: Mapping[str, tuple[str, ...]]
    outputs: Outputs
    predictions: Mapping[str, NDArray[Any]]
    labels: Mapping[str, NDArray[Any]]
    tasks: Mapping[str, Scores]
    absent: Mapping[str, str]
    agreement: Mapping[str, Scores] = field(default_factory=dict)
    people: Sequence[str] = ()
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    hardware: str = "CPU"
    derived: tuple[str, ...] = ()
    pairs: str = ""

    @property
    def samples(self) -> int:
        return len(self.keys)

    def as_json(self) -> dict[str, object]:
        """The `eval` object of the command line's JSON contract; accuracies in 0 to 1, `*_percent` in percent."""
        return {
            "schema": 1,
            "model": self.model,
            "runtime": self.runtime,
            "precision": self.precision,
            "data": self.source,
            "licence": self.licence,
            "research_only": self.research_only,
            "samples": self.samples,
            "skipped": {reason: len(keys) for reason, keys in self.skipped.items()},
            "tasks": {name: dict(scores) for name, scores in self.tasks.items()},
            "absent": dict(self.absent),
            **({"derived": list(self.derived)} if self.derived else {}),
            **({"pairs": self.pairs} if self.pairs else {}),
            "teacher_agreement": {name: dict(scores) for name, scores in self.agreement.items()},
        }


def decode(spec: ModelSpec, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Answers from raw outputs, as the manifest's post-processing contract states them.

    Args:
        spec: The model's outputs.
        outputs: Output name to (N, *shape): logits, offsets in crop sides, scores.

    Returns:
        Task name to: landmarks (N, K, 2) in crop sides, mean shape plus offset; classes (N,) the largest logit, two
        classes by OutputSpec.threshold; age (N,) years, expectation over the softmax or over its stages; score (N,) as
        it comes; attributes (N, M) 0 or 1, each by the threshold; identity (N, D) of length 1.

    Raises:
        ModelError: An output is missing, has another shape, or is not finite.
    """
    found = {}
    for output in spec.outputs:
        raw = raw_output(output, outputs)
        starts = range(0, max(len(raw), 1), _ROWS)
        found[output.task] = np.concatenate([_decode(output, raw[start : start + _ROWS]) for start in starts])
    return found


def probabilities(output: OutputSpec, raw: NDArray[Any]) -> NDArray[np.float64]:
    """Class probabilities of an output of class, age or attribute logits.

    Args:
        output: Its specification; an age of one class a year, not of stages.
        raw: (N, *shape) logits.

    Returns:
        (N, C) softmax; for attributes (N, M) sigmoid, each on its own.
    """
    assert not output.stages, "stages are no classes: there is no probability of a year"
    logits = raw.astype(np.float64)
    if TASKS[output.task].kind is Kind.ATTRIBUTES:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # the sigmoid, without overflow
    return _softmax(logits)


def in_words(output: OutputSpec, raw: NDArray[Any], answer: Any) -> str:
    """A decoded answer for people, with its probability where there is one: "smiling 97 %", "31 years".

    Args:
        output: Its specification; not of landmarks.
        raw: (1, *shape) raw output.
        answer: What `decode` made of it.
    """
    kind = TASKS[output.task].kind
    if kind is Kind.CLASSES:
        share = probabilities(output, raw)[0][int(answer)]
        return f"{output.classes[int(answer)].replace('_', ' ')} {100 * share:.0f} %"
    if kind is Kind.AGE:
        return f"{float(answer):.0f} years"
    if kind is Kind.SCORE:
        return f"{float(answer):.2f}"
    if kind is Kind.ATTRIBUTES:
        names = [name.replace("_", " ") for name, yes in zip(output.classes, answer, strict=True) if yes]
        return ", ".join(names) or "none"
    return f"{np.asarray(answer).size} values"


def evaluate(
    runner: Runner,
    pack: Pack,
    *,
    model: str = "",
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a model over a source's evaluation crops and score it on every task that both have.

    Args:
        runner: The model.
        pack: Evaluation crops: margin 1, px = runner.spec.input_px.
        model: Name for the result; "" takes the model's own.
        batch: Pictures per call of the runner.
        progress: Called after each batch with the number of samples done.

    Raises:
        DataError: The pack is empty, or its crops are not this model's input.
        ModelError: An output is missing, has another shape, or is not finite.
    """
    outputs = answer(runner, pack, model=model, batch=batch, progress=progress)
    return judge(runner, outputs, pack, model=model)


def answer(
    runner: Runner,
    pack: Pack,
    *,
    model: str = "",
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Outputs:
    """A model's raw outputs on a source's evaluation crops, (N, *shape) by name. Arguments and errors as `evaluate`."""
    spec = runner.spec
    _refuse_other_crops(spec, pack)
    found: Outputs = {}
    done = 0
    for images in in_batches(pack.images, batch):
        answers = runner.run(images)
        for output in spec.outputs:
            part = raw_output(output, answers)
            if len(part) != len(images):
                raise ModelError(
                    f"{len(part)} rows of output {output.name!r} for {len(images)} pictures",
                    expected="one row per picture",
                    where=model or spec.name,
                )
            # Not collected and joined: for a moment that would take twice the memory.
            whole = found.setdefault(output.name, np.empty((len(pack.keys), *part.shape[1:]), part.dtype))
            whole[done : done + len(part)] = part
        done += len(images)
        if progress is not None:
            progress(done)
    return found


def judge(runner: Runner, outputs: Outputs, pack: Pack, *, model: str = "") -> Evaluation:
    """Score raw outputs, fresh or kept, on every task that the model and the source both have.

    Identity is verified over the pairs that the source publishes, else over pairs drawn from its labels.

    Args:
        runner: The model they came from.
        outputs: Output name to (N, *shape), a row per sample of the pack.
        pack: The crops they answer.
        model: Name for the result; "" takes the model's own.

    Raises:
        ModelError: An output is missing, has another shape, or is not finite.
    """
    spec = runner.spec
    predictions = decode(spec, outputs)
    shared = [name for name in predictions if name in pack.labels]
    tasks = {name: score(TASKS[name], predictions[name], pack.labels[name]) for name in shared}
    absent = {name: f"{pack.name} has no labels for it" for name in predictions if name not in tasks}
    absent |= {name: why for name in shared if (why := why_absent(TASKS[name], tasks[name]))}
    pairs = ""
    if "identity" in tasks:
        verified, pairs, absent["identity"] = _verified(predictions["identity"], pack)
        tasks["identity"] |= verified
    return Evaluation(
        model=model or spec.name,
        spec=spec,
        runtime=runner.runtime,
        precision=runner.precision,
        source=pack.source,
        licence=pack.licence,
        research_only=pack.research_only,
        keys=pack.keys,
        skipped={reason: tuple(keys) for reason, keys in pack.skipped.items()},
        outputs=outputs,
        predictions=predictions,
        labels={name: pack.labels[name] for name in shared},
        tasks=tasks,
        absent={name: why for name, why in absent.items() if why},
        people=pack.people,
        groups=group_columns(pack.groups, pack.labels),
        hardware=hardware(runner),
        derived=tuple(name for name in shared if name in pack.derived),
        pairs=pairs,
    )


def _verified(embeddings: NDArray[Any], pack: Pack) -> tuple[Scores, str, str]:
    """Identity's scores over pairs of a source's pictures and whose pairs these are; or why there are none."""
    try:
        pairs = draw_pairs(pack.keys, pack.labels["identity"]) if pack.pairs is None else pack.pairs
        return score_pairs(embeddings, pack.keys, pairs), DRAWN if pack.pairs is None else PUBLISHED, ""
    except DataError as error:
        return {}, "", f"{error.found}; verification needs {error.expected}"


def hardware(runner: Runner) -> str:
    """What computes a runner's answers: "CPU", or "GPU: " and its name."""
    device = str(getattr(runner, "device", "cpu"))
    if not device.startswith("cuda"):
        return "CPU"
    import torch

    return f"GPU: {torch.cuda.get_device_name(device)}"


def teacher_agreement(evaluation: Evaluation, teacher: Evaluation) -> dict[str, Scores]:
    """Agreement of a model with its teacher on the same samples, per task that both answer.

    Landmarks are compared in crop sides, so the two may differ in input size.

    Raises:
        DataError: The two were evaluated on different samples.
    """
    if evaluation.keys != teacher.keys:
        raise DataError(
            f"{evaluation.samples} samples of {evaluation.source!r}",
            expected=f"the {teacher.samples} samples of {teacher.source!r} that the teacher answered, in that order",
            where=f"agreement of {evaluation.model!r} with {teacher.model!r}",
            do="Score both on the same source",
        )
    shared = [name for name in evaluation.predictions if name in teacher.predictions]
    return {name: agreement(TASKS[name], evaluation.predictions[name], teacher.predictions[name]) for name in shared}


def evaluation_pack(
    source: str,
    spec: ModelSpec,
    *,
    root: Path,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Evaluation crops of a source for a model: the nominal crop at the model's input size, as its users will cut it.

    Those of shards are read batch by batch; those of other sources are cut into the cache once. Labels of the
    model's tasks that follow from others are derived where the source gives none; the pairs that a source publishes
    come along for a model that answers identity.

    Args:
        source: `CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]`, `folder:PATH[@SPLIT]` or `webdataset:PATH[@SPLIT]`.
        spec: The model's input.
        root: Folder that holds the corpora.
        strict: Whether a sample that cannot be read is an error; otherwise it is counted and listed.
        progress: Called with the number of faces cut and their total, when they are not in the cache.
    """
    from edgeface.data.crops import evaluation_crops
    from edgeface.data.derive import derived
    from edgeface.data.sources import pairs_of

    cut = evaluation_crops(source, px=spec.input_px, root=root, strict=strict, progress=progress)
    tasks = {output.task for output in spec.outputs}
    listing = pairs_of(source, root=root) if "identity" in tasks else None
    pairs = None if listing is None else read_pairs(listing)
    return replace(derived(cut, [task for task in DERIVED if task in tasks]), pairs=pairs)


def _decode(output: OutputSpec, raw: NDArray[Any]) -> NDArray[Any]:
    kind = TASKS[output.task].kind
    if output.heatmap:
        return heatmap_points(raw)
    if kind is Kind.LANDMARKS:
        return np.asarray(np.asarray(output.mean_shape, np.float32) + raw)
    if kind is Kind.SCORE:
        return raw[:, 0]
    if output.stages:
        return stage_years(raw.astype(np.float64), output.stages)
    if kind is Kind.AGE:
        return np.asarray(_softmax(raw.astype(np.float64)) @ np.arange(raw.shape[1]))
    if kind is Kind.IDENTITY:
        return np.asarray(raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12))
    # Decisions compare logits, not probabilities, so that equal logits decide alike on every runtime.
    cut = _logit(output)
    if kind is Kind.ATTRIBUTES:
        return np.asarray(raw.astype(np.float64) > cut).astype(np.int8)
    if raw.shape[1] == 2:
        return np.asarray(raw[:, 1].astype(np.float64) - raw[:, 0] > cut).astype(np.int64)
    return np.asarray(raw.argmax(1)).astype(np.int64)


def _logit(output: OutputSpec) -> float:
    if not 0.0 < output.threshold < 1.0:
        raise ModelError(
            f"{output.threshold!r}", expected="a probability between 0 and 1", where=f"threshold of {output.name!r}"
        )
    return math.log(output.threshold / (1.0 - output.threshold))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    power = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(power / power.sum(1, keepdims=True))


def raw_output(output: OutputSpec, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """One output of a runner's, (N, *shape), once it is seen to be there, of its shape and finite.

    Raises:
        ModelError: It is not.
    """
    where = f"output {output.name!r}"
    if output.name not in outputs:
        names = ", ".join(map(repr, outputs)) or "none"
        raise ModelError(f"outputs {names}", expected=f"one named {output.name!r}", where=where)
    raw = outputs[output.name]
    if raw.shape[1:] != output.shape:
        raise ModelError(f"shape {raw.shape}", expected=f"(N, {', '.join(map(str, output.shape))})", where=where)
    # Here, because an argmax or a threshold would turn NaN into a decision like any other.
    if not np.isfinite(raw).all():
        raise ModelError(
            f"{int((~np.isfinite(raw)).sum())} of {raw.size} values are not finite",
            expected="finite outputs",
            where=where,
            do="Train with a lower learning rate, or check an exported file with `edgeface parity`",
        )
    return raw


def _refuse_other_crops(spec: ModelSpec, pack: Pack) -> None:
    if len(pack.keys) == 0:
        raise DataError(
            "no sample", expected="at least one face", where=pack.source, do="Check the source and its split"
        )
    if pack.px != spec.input_px or pack.margin != 1.0:
        raise DataError(
            f"crops of {pack.px} px with margin {pack.margin}",
            expected=f"{spec.input_px} px with margin 1.0, the input of {spec.name!r}",
            where=pack.source,
            do="Open them with edgeface.evaluate.evaluation_pack",
        )
