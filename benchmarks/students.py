"""Train the students of the agreement and post-training tables: each architecture, briefly, under one teacher.

    EDGEFACE_DATA=FOLDER python -m benchmarks.students TEACHER [--out runs/students] [--seeds 3] [--threads 2] [--full]

Writes OUT/STUDENT-SEED/{student,qat}, with --full OUT/STUDENT-full/{student,qat}: the published shapes at their own
width. A finished stage is skipped and an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from distill.stages import resolve, train_student, training_data, use_threads
from edgeface.checkpoint import load_checkpoint
from edgeface.config import load_recipe
from edgeface.specs import NetworkSpec, QatSpec, StudentSpec, TrainSpec
from quantize.stage import train_qat

# Narrow and small enough for two CPU cores to train twelve of them in an hour or two.
NETWORKS = {
    "edge_s": NetworkSpec(backbone="edge_s", input_px=64, landmark_head="heatmap"),
    "cnn5": NetworkSpec(backbone="cnn5", width=0.5, input_px=48),
    "vgg11": NetworkSpec(backbone="vgg11", width=0.25, input_px=48),
    "lightcnn9": NetworkSpec(backbone="lightcnn9", width=0.5, input_px=48),
}
# At their own width, for agreement and speed rather than accuracy.
FULL = {
    "cnn5": NetworkSpec(backbone="cnn5", input_px=64),
    "lightcnn9": NetworkSpec(backbone="lightcnn9", input_px=64),
    "vgg11": NetworkSpec(backbone="vgg11", input_px=64),
}
FULL_EPOCHS, FULL_QAT_EPOCHS = 2.0, 0.5
FLOAT = TrainSpec(epochs=6.0, batch=64, lr=3e-3, warmup_epochs=0.5, ema=0.995, dtype="bf16")
QAT = QatSpec(train=TrainSpec(epochs=2.0, batch=64, lr=5e-4, warmup_epochs=0.2, ema=0.99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--full", action="store_true", help="the published shapes at full width, one seed, fewer epochs"
    )
    arguments = parser.parse_args()
    teacher = load_checkpoint(arguments.teacher)
    base = replace(load_recipe("mtfl-cpu"), threads=arguments.threads, name="students")
    recipe = resolve(base)
    use_threads(recipe)
    data = training_data(recipe)
    trainings = [
        (f"{name}-{seed}", seed, network, FLOAT, QAT)
        for seed in range(arguments.seeds)
        for name, network in NETWORKS.items()
    ]
    if arguments.full:
        brief = replace(FLOAT, epochs=FULL_EPOCHS, ema=0.99)
        brief_qat = replace(QAT, train=replace(QAT.train, epochs=FULL_QAT_EPOCHS, ema=0.98))
        trainings = [(f"{name}-full", 0, network, brief, brief_qat) for name, network in FULL.items()]
    for folder_name, seed, network, train, qat in trainings:
        folder = arguments.out / folder_name
        own = replace(recipe, seed=seed, student=StudentSpec(network=network, train=train), qat=qat)
        student = train_student(own, data, folder / "student", teacher=teacher)
        train_qat(own, data, folder / "qat", student=student, teacher=teacher)
        print(folder, flush=True)


if __name__ == "__main__":
    main()
