"""The third stage: quantization-aware training of a float student, with its teacher still supervising."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from distill import ranks
from distill.foreign import Answers
from distill.images import shrink
from distill.imbalance import label_weights
from distill.stages import (
    TrainingData,
    batches_for,
    chosen,
    finished,
    learned_from,
    load_network,
    objective_with,
    partial_folder,
    people_in,
    remove_partial,
    rendered_px,
    save_stage,
    stage_key,
    supervised_by,
    terms_of,
    use_threads,
    watcher,
)
from distill.train import Progress, train
from distill.trouble import sample_names
from edgeface.checkpoint import Checkpoint
from edgeface.config import to_plain
from edgeface.files import sha256_json
from edgeface.specs import STAGES, Recipe
from quantize.calibrate import calibrate
from quantize.qat import finish, milestones, prepare, qat_weights


def train_qat(
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    *,
    student: Checkpoint,
    teacher: Checkpoint | None,
    answers: Answers | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Checkpoint:
    """Fold, calibrate, train under fake-quantization, snap to the integer grid, save.

    Args:
        recipe: A resolved recipe.
        data: From distill.stages.training_data.
        folder: Becomes the checkpoint; `folder.partial` beside it holds the step checkpoint meanwhile.
        student: The float student it starts from; its network and outputs are kept.
        teacher: Supervises as it did the student; None trains on labels alone.
        answers: As `teacher`.
        report: Told of progress.

    Raises:
        UnsupportedError: A layer of the student has no integer form.
    """
    spec = recipe.qat
    key = sha256_json(
        {
            "stage": stage_key("qat", recipe, data, network=student.network, spec=spec.train),
            "qat": {name: value for name, value in to_plain(spec).items() if name != "train"},
            "distill": chosen(recipe.distill),
            "student": student.sha256,
            **supervised_by(recipe, teacher, answers),
        }
    )
    done = ranks.after_leader(lambda: finished(folder, key))
    if done is not None:
        return done
    use_threads(recipe)
    model, seed = student.model, recipe.seed + STAGES.index("qat")
    network = prepare(load_network(student).eval(), spec)
    batches = batches_for(
        recipe,
        data,
        spec=spec.train,
        input_px=rendered_px(model, teacher),
        seed=seed,
        answers=answers,
        model=model,
    )
    # Ranges start from augmented pictures as training will see them; epoch 0 is seen again, which harms nothing.
    calibrate(
        network,
        (shrink(batch.images, model.input_px) for batch in batches.epoch(0)),
        limit=spec.calibration_batches,
    )
    objective = objective_with(
        recipe,
        model,
        teacher=teacher,
        answers=answers,
        people=people_in(batches),
        class_weights=label_weights(batches.class_counts, recipe.loss),
        seed=seed,
        start=student,
    )
    trained = sample_names([part.keys for part in data.train])(train)(
        network,
        objective,
        batches,
        spec=spec.train,
        seed=seed,
        key=key,
        partial=partial_folder(folder),
        input_px=model.input_px,
        watch=watcher(data, model),
        before_step=milestones(spec),
        companions=objective.companions,
        report=report,
    )
    network.to(torch.device("cpu"))
    network.load_state_dict(trained.weights)
    finish(network)
    checkpoint = save_stage(
        folder,
        kind="qat",
        key=key,
        network=student.network,
        model=model,
        trained=replace(trained, weights=qat_weights(network)),
        recipe=recipe,
        data=data,
        made_from={"student": student.sha256, **learned_from(teacher, answers)},
        teacher=teacher,
        answers=answers,
        start=terms_of(student),
        student=os.path.relpath(student.folder.resolve(), folder.parent.resolve() / folder.name),
    )
    remove_partial(folder)
    return checkpoint
