"""The two float stages: train a teacher, distil a student. Each takes a recipe and data and leaves a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distill import ranks
from distill.balance import Balancing, balancer
from distill.features import FeaturePairs
from distill.foreign import Answers, in_our_words, rows_for, taught_tasks
from distill.identity import PeopleClassifier
from distill.imbalance import label_weights
from distill.objective import Objective
from distill.stopping import Stopping
from distill.streaming import AnyBatches, is_streamed, streamed_batches
from distill.train import Progress, Trained, train
from distill.trouble import sample_names
from edgeface.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgeface.config import to_plain
from edgeface.data.crops import evaluation_crops
from edgeface.data.derive import derived
from edgeface.data.loader import Batches
from edgeface.data.pack import Pack, pack
from edgeface.data.sources import data_root, open_source
from edgeface.data.stream import Stream, mean_shape, open_stream
from edgeface.errors import ConfigError, DataError, ModelError
from edgeface.evaluate import Outputs, evaluate
from edgeface.files import remove_folder, settle, sha256_json
from edgeface.metrics import main_metric
from edgeface.models.folding import fold_norms
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec, take_over
from edgeface.models.pretrained import IMAGENET_TERMS, load_published, published
from edgeface.models.runner import TorchRunner
from edgeface.models.taps import Taps, layer_shapes
from edgeface.provenance import provenance
from edgeface.specs import (
    FEATURES,
    IMAGENET,
    STAGES,
    AugmentSpec,
    BalancerSpec,
    DistillSpec,
    LossSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    Recipe,
    StoppingSpec,
    StudentSpec,
    TeacherSpec,
    TrainSpec,
    output_spec,
)
from edgeface.tasks import TASKS, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

Report = Callable[[Progress], None]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FORMAT = 1  # raise it when the same recipe and data begin to give other weights
# Keys that recipes did not always have, with the value that changes nothing: runs from before keep their digest.
_LATER: Mapping[str, object] = {
    "activation": "relu",
    "forms": {},
    "center_weight": LossSpec.center_weight,
    "center_rate": LossSpec.center_rate,
    "margin": LossSpec.margin,
    "margin_scale": LossSpec.margin_scale,
    "class_power": LossSpec.class_power,
    "focal_gamma": LossSpec.focal_gamma,
    "hue": AugmentSpec.hue,
    "shear_deg": AugmentSpec.shear_deg,
    "border": AugmentSpec.border,
    "losses": {},
    "feature_weight": DistillSpec.feature_weight,
    "taps": [],
    "classifier": "softmax",
}
WATCHES = 10  # validations of a training


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything a run trains and validates on.

    Attributes:
        train: Packs with room around the nominal crop for augmentation, or streams of them.
        val: Source names of the validation sets.
        root: Folder that holds the corpora.
        outputs: Task name to its output, mean shapes included.
        content_hash: Digest of the training pictures and labels.
        derive: Tasks whose labels are derived from others.
    """

    train: Sequence[Pack | Stream]
    val: Sequence[str]
    root: Path
    outputs: Mapping[str, OutputSpec]
    content_hash: str
    derive: Sequence[str] = ()

    @property
    def licences(self) -> list[str]:
        return [f"{part.name}: {part.licence}" for part in self.train]

    @property
    def faces(self) -> dict[str, str]:
        """Training source to the digest of its pictures and labels."""
        return {part.source: part.content_hash for part in self.train}

    @property
    def research_only(self) -> bool:
        return any(part.research_only for part in self.train)

    def validation(self, input_px: int) -> list[Pack]:
        """Evaluation crops of the validation sources, cut as users of the model will cut them."""
        packs = (evaluation_crops(source, px=input_px, root=self.root) for source in self.val)
        return [derived(part, self.derive) for part in packs]

    def validation_faces(self, input_px: int) -> dict[str, str]:
        """Validation source to the digest of its pictures, cut for an input, and labels."""
        return {part.source: part.content_hash for part in self.validation(input_px)}


def use_threads(recipe: Recipe) -> None:
    """Fix the number of CPU threads: results depend on it, so the recipe holds it.

    Processes of one run on one machine divide them.
    """
    torch.set_num_threads(max(1, recipe.threads // ranks.local_count()))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every automatic value replaced by what it stands for on this machine."""
    from dataclasses import replace

    if recipe.threads:
        return recipe
    return replace(recipe, threads=usable_cores())


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_data(
    recipe: Recipe, *, strict: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> TrainingData:
    """Open and pack the recipe's sources, and hash the shards of streamed ones; the second time the cache answers.

    Args:
        recipe: A resolved recipe.
        strict: Whether a sample that cannot be read is an error.
        progress: Called with (source, crops done, crops in all).

    Raises:
        DataError: A source is missing or empty, or a shard has changed since it was written.
        ConfigError: No source labels one of the tasks.
    """
    root = data_root(recipe.data.root)
    parts: list[Pack | Stream] = []
    for source in recipe.data.train:
        stream = open_stream(source, px=recipe.data.pack_px, margin=recipe.data.margin, derive=recipe.data.derive)
        told = None if progress is None else (lambda done, total, source=source: progress(source, done, total))
        if stream is not None:
            stream.require_intact(progress=told)
            parts.append(stream)
            continue
        corpus = open_source(source, root=root, strict=strict)
        part = pack(corpus, px=recipe.data.pack_px, margin=recipe.data.margin, progress=told)
        parts.append(derived(part, recipe.data.derive))
    if sum(len(part) for part in parts) == 0:
        raise DataError("no usable sample", expected="at least one", where=f"data.train = {list(recipe.data.train)!r}")
    outputs = {}
    for name in recipe.tasks:
        if not any(name in part.labels for part in parts):
            offered = sorted({task for part in parts for task in part.labels})
            raise ConfigError(
                f"no training source labels {name!r}",
                expected=f"tasks among {', '.join(map(repr, offered))}",
                where=f"tasks.{name}",
                do="Take the task out, or add a source that labels it to data.train",
            )
        outputs[name] = output_spec(name, mean_shape=_mean_shape(name, parts), head=recipe.heads.get(name, ""))
    return TrainingData(
        train=tuple(parts),
        val=recipe.data.val,
        root=root,
        outputs=outputs,
        content_hash=sha256_json([*(part.content_hash for part in parts), *recipe.data.derive]),
        derive=recipe.data.derive,
    )


def _mean_shape(name: str, parts: Sequence[Pack | Stream]) -> tuple[tuple[float, float], ...]:
    """Mean landmarks of the training faces, in sides of the nominal crop; empty for other kinds of task."""
    if TASKS[name].kind is not Kind.LANDMARKS:
        return ()
    mean = mean_shape(name, parts) if is_streamed(parts) else _packed_mean(name, parts)
    return tuple((round(float(x), 6), round(float(y), 6)) for x, y in mean)


def _packed_mean(name: str, parts: Sequence[Pack | Stream]) -> NDArray[np.float64]:
    """As edgeface.data.stream.mean_shape, to the last bit as it ever was for packs."""
    shapes = []
    for part in parts:
        if isinstance(part, Pack) and name in part.labels:
            points = part.labels[name].astype(np.float64)
            points = points[np.isfinite(points).all(axis=(1, 2))]
            shapes.append((points - 0.5) * part.margin + 0.5)  # packed crop sides to nominal crop sides
    return np.asarray(np.concatenate(shapes).mean(axis=0))


def batches_for(
    recipe: Recipe,
    data: TrainingData,
    *,
    spec: TrainSpec,
    input_px: int,
    seed: int,
    answers: Answers | None = None,
    model: ModelSpec | None = None,
) -> AnyBatches:
    """Augmented training batches at an input size.

    Args:
        answers: Of a teacher, to go with the labels; needs `model`.
        model: Outputs of the network to train.

    Raises:
        ConfigError: The answers teach none of its tasks.
        DataError: None of the training faces is among them.
    """
    told = answers is not None and recipe.distill.soft > 0.0 and model is not None
    if is_streamed(data.train):
        return streamed_batches(
            recipe,
            data.train,
            spec=spec,
            input_px=input_px,
            seed=seed,
            answers=answers if told else None,
            model=model,
            rank=ranks.rank(),
            world=ranks.count(),
        )
    packs = [part for part in data.train if isinstance(part, Pack)]
    return Batches(
        packs,
        tasks=tuple(recipe.tasks),
        augment=recipe.augment,
        input_px=input_px,
        batch=spec.batch,
        seed=seed,
        balance=spec.balance,
        databases=recipe.data.balance,
        answers=rows_for(answers, packs, model, names=recipe.teacher.map) if told else None,  # type: ignore[arg-type]
        rank=ranks.rank(),
        world=ranks.count(),
        threads=spare_threads(recipe.threads),
    )


def spare_threads(busy: int) -> int:
    """Threads that may make batches ahead: up to 4 cores that the networks leave of each process's share.

    Args:
        busy: Threads that a process computes its networks with; with a GPU, one only drives it.
    """
    here = ranks.local_count()
    taken = 1 if torch.cuda.is_available() else max(1, busy // here)
    return max(0, min(4, usable_cores() // here - taken))


def rendered_px(model: ModelSpec, teacher: Checkpoint | None) -> int:
    """Side at which training crops are made: the larger of the two inputs, so that neither reads a blown-up crop."""
    return model.input_px if teacher is None else max(model.input_px, teacher.model.input_px)


def watcher(
    data: TrainingData, model: ModelSpec, *, objective: Objective | None = None
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """Gives the main metric of every task on the validation sources, as `task.metric`.

    Args:
        data: The run's data.
        model: The network's input and outputs.
        objective: Gives `task.loss` too, the mean loss against the labels.
    """
    packs = ranks.in_turn(lambda: data.validation(model.input_px))
    if not packs:
        return None

    def watch(network: nn.Module) -> Mapping[str, float]:
        rows: dict[str, float] = {}
        for part in packs:
            scored = evaluate(SharedRunner(network, model), part, batch=256)
            for task, scores in scored.tasks.items():
                key = main_metric(TASKS[task], scores)
                if key in scores:
                    rows.setdefault(f"{task}.{key}", float(scores[key]))
            if objective is not None:
                for output in model.outputs:
                    # Identity is judged by a classifier over training people, who are not those of a validation source.
                    if output.task in scored.labels and TASKS[output.task].kind is not Kind.IDENTITY:
                        raw, labels = scored.outputs[output.name], scored.labels[output.task]
                        loss = objective.label_loss(output.name, torch.from_numpy(raw), torch.from_numpy(labels))
                        rows.setdefault(f"{output.task}.loss", loss)
        return rows

    return watch


class SharedRunner(TorchRunner):
    """Divides pictures over the processes; each gets the answers to all, each answered once."""

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        count, place = ranks.count(), ranks.rank()
        if count == 1:
            return super().run(batch)
        first, end = len(batch) * place // count, len(batch) * (place + 1) // count
        # A process without a picture still has to say what shape its no answers have.
        own = super().run(batch[first : max(end, first + 1)])
        return {name: ranks.gather_all(torch.from_numpy(rows[: end - first])).numpy() for name, rows in own.items()}


def chosen(spec: NetworkSpec | LossSpec | DistillSpec | AugmentSpec) -> dict[str, object]:
    """A spec as plain values for a digest, without later keys that were left as they are."""
    return {name: value for name, value in to_plain(spec).items() if name not in _LATER or value != _LATER[name]}


def stage_key(stage: str, recipe: Recipe, data: TrainingData, *, network: NetworkSpec, spec: TrainSpec) -> str:
    """Digest of everything a stage's weights depend on, apart from earlier stages and a start from other weights."""
    plain = to_plain(recipe)
    # How often it saves changes no weight; neither does a choice that was not made.
    timeless = {name: value for name, value in to_plain(spec).items() if name != "checkpoint_s" and value != ""}
    return sha256_json(
        {
            "format": _FORMAT,
            "stage": stage,
            "seed": recipe.seed,
            "threads": recipe.threads,
            "tasks": plain["tasks"],
            "augment": chosen(recipe.augment),
            "loss": chosen(recipe.loss),
            "network": chosen(network),
            "train": timeless,
            "data": data.content_hash,
            **({"heads": plain["heads"]} if recipe.heads else {}),
            **({"databases": recipe.data.balance} if recipe.data.balance else {}),
        }
    )


def supervised_by(recipe: Recipe, teacher: Checkpoint | None, answers: Answers | None) -> dict[str, object]:
    """What a student's digest says of what teaches it."""
    plain: dict[str, object] = {"teacher": "" if teacher is None else teacher.sha256}
    if answers is not None:
        plain["answers"] = answers.sha256
    if recipe.teacher.map:
        plain["map"] = dict(recipe.teacher.map)
    return plain


def learned_from(teacher: Checkpoint | None, answers: Answers | None) -> dict[str, str]:
    """For a manifest's `made_from`: what taught a student, to its digest."""
    found = {} if teacher is None else {"teacher": teacher.sha256}
    return found if answers is None else {**found, "answers": answers.sha256}


def finished(folder: Path, key: str) -> Checkpoint | None:
    """The stage's checkpoint when it is there, whole, and made from the same recipe and data."""
    settle(folder)
    if not (folder / "manifest.json").is_file():
        return None
    checkpoint = load_checkpoint(folder)
    if checkpoint.manifest["key"] != key:
        return None
    remove_partial(folder)  # killed between saving the one and deleting the other
    return checkpoint


def save_stage(
    folder: Path,
    *,
    kind: str,
    key: str,
    network: NetworkSpec,
    model: ModelSpec,
    trained: Trained,
    recipe: Recipe,
    data: TrainingData,
    made_from: Mapping[str, str],
    student: str = "",
    teacher: Checkpoint | None = None,
    answers: Answers | None = None,
    start: tuple[Sequence[str], bool] = ((), False),
) -> Checkpoint:
    """Save a finished stage; the step checkpoint goes, so a stopped run ends with the same files as an unstopped one.

    Args:
        made_from: Stage name to the weights' digest of the checkpoints it was made from.
        student: Path from `folder` to the float student of a QAT checkpoint; `build` takes the float files from it.
        teacher: What taught it: its terms are inherited.
        answers: As `teacher`.
        start: Terms of what its weights began as, as of `terms_of`: they are inherited, too.
    """
    from edgeface.config import dump_recipe

    terms = [(data.licences, data.research_only), start]
    if teacher is not None:
        terms.append(terms_of(teacher))
    if answers is not None:
        terms.append((list(answers.licences), answers.research_only))

    made = provenance(
        seed=recipe.seed,
        licences=list(dict.fromkeys(licence for licences, _ in terms for licence in licences)),
        research_only=any(research_only for _, research_only in terms),
    )
    save = partial(
        save_checkpoint,
        folder,
        kind=kind,
        network=network,
        model=model,
        weights=trained.weights,
        companions=trained.companions,
        provenance={**made, "processes": list(trained.processes)},
        extra={
            "key": key,
            "made_from": dict(made_from),
            **({"student": student} if student else {}),
            "training": {
                "steps": trained.steps,
                "samples": trained.samples,
                "seconds": round(trained.seconds, 1),
                "resumed_at": list(trained.resumed_at),
            },
        },
        texts={"recipe.toml": dump_recipe(recipe), "curve.csv": trained.curve},
    )
    return ranks.after_leader(save, others=lambda: load_checkpoint(folder))


def train_teacher(recipe: Recipe, data: TrainingData, folder: Path, *, report: Report | None = None) -> Checkpoint:
    """Train the teacher on labels alone.

    Args:
        recipe: A resolved recipe.
        data: From `training_data`.
        folder: Becomes the checkpoint; `folder.partial` beside it holds the step checkpoint meanwhile.
        report: Told of progress.
    """
    key = teacher_key(recipe, data)
    return _train_float("teacher", recipe, data, folder, spec=recipe.teacher, key=key, teacher=None, report=report)


def teacher_key(recipe: Recipe, data: TrainingData) -> str:
    """Digest of everything that the teacher's weights depend on, a start from other weights included."""
    spec = recipe.teacher
    key = stage_key("teacher", recipe, data, network=spec.network, spec=spec.train)
    return _with_steps(key, spec, data)


def train_student(
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    *,
    teacher: Checkpoint | None,
    answers: Answers | None = None,
    report: Report | None = None,
) -> Checkpoint:
    """Distil a float student; without a teacher, or with distill.soft = 0, it learns from labels alone.

    Args:
        recipe: A resolved recipe.
        data: From `training_data`.
        folder: Becomes the checkpoint; `folder.partial` beside it holds the step checkpoint meanwhile.
        teacher: The teacher's checkpoint.
        answers: What a teacher answered before; where both are there, these teach the tasks they answer.
        report: Told of progress.
    """
    spec = recipe.student
    key = sha256_json(
        {
            "stage": stage_key("student", recipe, data, network=spec.network, spec=spec.train),
            "distill": chosen(recipe.distill),
            **supervised_by(recipe, teacher, answers),
        }
    )
    key = _with_steps(key, spec, data)
    return _train_float(
        "student", recipe, data, folder, spec=spec, key=key, teacher=teacher, answers=answers, report=report
    )


def _train_float(
    kind: str,
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    *,
    spec: TeacherSpec | StudentSpec,
    key: str,
    teacher: Checkpoint | None,
    report: Report | None,
    answers: Answers | None = None,
) -> Checkpoint:
    done = ranks.after_leader(lambda: finished(folder, key))
    if done is not None:
        return done
    use_threads(recipe)
    seed = recipe.seed + STAGES.index(kind)  # stages see the pictures in different orders and variations
    model = model_spec(spec.network, tuple(data.outputs.values()))
    network = begin_network(spec, model, seed=seed)
    batches = batches_for(
        recipe,
        data,
        spec=spec.train,
        input_px=rendered_px(model, teacher),
        seed=seed,
        answers=answers,
        model=model,
    )
    objective = objective_with(
        recipe,
        model,
        teacher=teacher,
        answers=answers,
        people=people_in(batches),
        class_weights=label_weights(batches.class_counts, recipe.loss),
        network=network,
        seed=seed,
    )
    balancing = balancing_with(spec, objective, network)
    stops = spec.stopping.mode != "none"
    trained = sample_names([part.keys for part in data.train])(train)(
        network,
        objective,
        batches,
        spec=spec.train,
        seed=seed,
        key=key,
        partial=partial_folder(folder),
        input_px=model.input_px,
        watch=watcher(data, model, objective=objective if balancing is not None else None),
        watches=spec.stopping.validations if stops else WATCHES,
        companions=objective.companions,
        balancing=balancing,
        report=report,
    )
    checkpoint = save_stage(
        folder,
        kind=kind,
        key=key,
        network=spec.network,
        model=model,
        trained=trained,
        recipe=recipe,
        data=data,
        made_from=learned_from(teacher, answers),
        teacher=teacher,
        answers=answers,
        start=terms_of_start(spec),
    )
    remove_partial(folder)
    return checkpoint


def terms_of_start(spec: TeacherSpec | StudentSpec) -> tuple[Sequence[str], bool]:
    """Licences of the weights that a stage's network begins with, and whether they are for research only."""
    start = spec.transfer.start
    if start == "":
        return (), False
    if start == IMAGENET:
        return (IMAGENET_TERMS,), False
    return terms_of(load_checkpoint(Path(start)))


def terms_of(checkpoint: Checkpoint) -> tuple[Sequence[str], bool]:
    """Licences of what a checkpoint was made of, and whether any of it is for research only."""
    own = checkpoint.manifest["provenance"]
    return own["licences"], own["research_only"]


def begin_network(spec: TeacherSpec | StudentSpec, model: ModelSpec, *, seed: int) -> MultiTaskNetwork:
    """A stage's network before its first step: random, or with the trunk of another one, a prefix of it frozen.

    Raises:
        ModelError: The start is not there, or damaged.
        ConfigError: It does not fit.
    """
    network = build_network(spec.network, model, seed=seed)
    transfer = spec.transfer
    if transfer.start:
        source = (
            load_published(spec.network.backbone)
            if transfer.start == IMAGENET
            else load_network(load_checkpoint(Path(transfer.start))).backbone
        )
        take_over(network, source, blocks=transfer.blocks)
        network.freeze(transfer.frozen_prefix)
    return network


def balancing_with(
    spec: TeacherSpec | StudentSpec, objective: Objective, network: MultiTaskNetwork
) -> Balancing | None:
    """What takes the steps where the recipe balances or stops tasks; None where it does neither."""
    if spec.balancer == BalancerSpec() and spec.stopping.mode == "none":
        return None
    taps = Taps(network, [FEATURES])
    return Balancing(
        objective,
        balancer(objective.weights, spec.balancer, features=math.prod(layer_shapes(network)[FEATURES])),
        stopping=None if spec.stopping.mode == "none" else Stopping(tuple(objective.weights), spec.stopping),
        features=lambda: taps.take()[0],
        network=network,
    )


def _with_steps(key: str, spec: TeacherSpec | StudentSpec, data: TrainingData) -> str:
    """A stage's digest with the weights it starts from, and with how it balances and stops tasks.

    Where tasks stop, validation errors decide which ones train on: then the digest holds the validation faces, too.
    """
    key = _with_start(key, spec)
    steps = {name: to_plain(getattr(spec, name)) for name in ("balancer", "stopping")}
    default = {"balancer": to_plain(BalancerSpec()), "stopping": to_plain(StoppingSpec())}
    if steps == default:
        return key
    judges = {}
    if spec.stopping.mode != "none":
        judges = {"val": ranks.in_turn(lambda: data.validation_faces(spec.network.input_px))}
    return sha256_json({"stage": key, **steps, **judges})


def _with_start(key: str, spec: TeacherSpec | StudentSpec) -> str:
    start = spec.transfer.start
    if not start:
        return key
    imagenet = start == IMAGENET
    weights = published(spec.network.backbone).sha256 if imagenet else load_checkpoint(Path(start)).sha256
    plain = to_plain(spec.transfer)
    return sha256_json({"stage": key, "transfer": {**plain, "start": weights}})


def people_in(batches: AnyBatches) -> int:
    """How many people the training labels tell apart; 0 when identity is not among the tasks."""
    return batches.people


def objective_with(
    recipe: Recipe,
    model: ModelSpec,
    *,
    teacher: Checkpoint | None,
    answers: Answers | None = None,
    people: int = 0,
    class_weights: Mapping[str, torch.Tensor] | None = None,
    network: MultiTaskNetwork | None = None,
    seed: int = 0,
    start: Checkpoint | None = None,
) -> Objective:
    """The recipe's objective, under a teacher where there is one.

    Args:
        model: Outputs of the network to train.
        teacher: Supervises, unless distill.soft is 0.
        answers: As `teacher`; what they answer, it is not asked.
        people: How many people the labels tell apart.
        class_weights: What distill.imbalance.label_weights gives; None where no form is a weighted one.
        network: The network to train, when its features are to be compared with the teacher's; a fake-quantized one
            has no layers to compare, and learns from the teacher's answers alone.
        seed: Of what is trained beside the network.
        start: A checkpoint whose classifier over people is taken on.

    Raises:
        ConfigError: A layer that the recipe compares does not exist, or `start` knows other people.
    """
    classifier = _classifier(recipe, model, people=people, seed=seed, start=start)
    names = recipe.teacher.map
    stored: frozenset[str] = frozenset()
    if answers is not None and recipe.distill.soft > 0.0:
        where = str(answers.folder)
        stored = frozenset(taught_tasks(in_our_words(answers.model, names, where=where), model, where=where))
    if teacher is None or recipe.distill.soft == 0.0:
        if stored and FEATURES in recipe.distill.losses:
            raise ConfigError(
                "a teacher of which only answers are stored",
                expected="a checkpoint, whose layers can be looked into",
                where="distill.losses.features",
                do="Take it out, or name a checkpoint in teacher.frozen",
            )
        return Objective(
            model=model,
            weights=recipe.tasks,
            loss=recipe.loss,
            distill=recipe.distill,
            people=classifier,
            class_weights=class_weights or {},
            stored=stored,
        )
    known = in_our_words(teacher.model, names, where=str(teacher.folder))
    taught_tasks(known, model, where=str(teacher.folder))
    guide = load_network(teacher).eval()
    guide.requires_grad_(False)
    pairs = None
    if network is not None and FEATURES in recipe.distill.losses:
        pairs = FeaturePairs(network, guide, recipe.distill, seed=seed)
    else:  # features may be taken before a batch norm
        fold_norms(guide)
    guide.to(device=_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Objective(
        model=model,
        weights=recipe.tasks,
        loss=recipe.loss,
        distill=recipe.distill,
        teacher=guide,
        teacher_model=known,
        teacher_names={ours: theirs for theirs, ours in names.items()},
        teacher_dtype=_DTYPES[recipe.teacher.train.dtype],
        stored=stored,
        people=classifier,
        class_weights=class_weights or {},
        pairs=pairs,
    )


def _classifier(
    recipe: Recipe, model: ModelSpec, *, people: int, seed: int, start: Checkpoint | None
) -> PeopleClassifier | None:
    if people == 0:
        return None
    (features,) = model.output("identity").shape
    classifier = PeopleClassifier(people, features, spec=recipe.loss, generator=torch.Generator().manual_seed(seed))
    kept = {} if start is None else start.companions()
    kept = {name.removeprefix("people."): t for name, t in kept.items() if name.startswith("people.")}
    if start is not None and kept:
        own = classifier.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in kept.items()}:
            raise ConfigError(
                f"{len(kept['centres'])} people in {start.folder}, {people} in the training data, or another loss",
                expected="the people and the identity loss that the student was trained with",
                where="data.train, loss.forms.identity",
                do="Quantize with the recipe of the student",
            )
        classifier.load_state_dict(kept)
    return classifier


def load_network(checkpoint: Checkpoint) -> MultiTaskNetwork:
    """The float network of a teacher's or student's checkpoint, with its weights.

    Raises:
        ModelError: The weights are those of another network or other tasks than its manifest describes.
    """
    network = build_network(checkpoint.network, checkpoint.model)
    weights, own = checkpoint.weights(), network.state_dict()
    odd = sorted(own.keys() ^ weights.keys()) or [n for n in own if own[n].shape != weights[n].shape]
    if odd:
        tasks = ", ".join(output.name for output in checkpoint.model.outputs)
        raise ModelError(
            f"weights that do not fit: {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}",
            expected=f"a {checkpoint.network.backbone} for {tasks}",
            where=str(checkpoint.folder),
            do="Take manifest and weights from the same run, or train it again",
        )
    network.load_state_dict(weights)
    return network


def partial_folder(folder: Path) -> Path:
    """Where a stage keeps its step checkpoint while it trains."""
    return folder.with_name(f"{folder.name}.partial")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def remove_partial(folder: Path) -> None:
    """Delete the step checkpoint of a stage whose checkpoint is saved."""
    if ranks.leads():
        remove_folder(partial_folder(folder))
