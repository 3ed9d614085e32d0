"""A cascade of regressors started from a network's landmarks, beside the same one started from the mean shape.

    EDGEFACE_DATA=FOLDER OMP_NUM_THREADS=1 python -m benchmarks.cascade --task landmarks5 \\
        --train mtfl@train --val mtfl@val --test mtfl@test tcdcn=runs/landmarks-all/teacher \\
        edge_s=runs/mtfl-cpu/student --out benchmarks/results/cascade.json
    python -m benchmarks.cascade --task landmarks68 --grid 2 --starts 2 --train synthetic:8000@train \\
        --val synthetic:600@val --test synthetic:1000@test tcdcn=runs/points68-drawn/teacher \\
        --out benchmarks/results/cascade.json

Rows of one source, all on the same crops of the same faces:

    mean shape               the mean of the training faces, for every face
    cascade from it          fitted from the mean shape, run from the mean shape
    NETWORK                  the network alone
    that cascade from NETWORK    the cascade of the second row, run from the network's landmarks: only the start differs
    cascade for NETWORK      fitted from starts with the network's error on the validation faces, run from its landmarks

The ridge, and the spread of the starts around the mean shape, are chosen on the validation faces; the test faces are
read once, at the end. Several networks of one name are seeds of it: its rows are means over them, and `each` has the
mean error of every seed. `gap` is a row's mean error minus that of the cascade from the mean shape, or of the network,
with a 95 % interval (paired bootstrap over faces, of errors averaged over the seeds). A second task is added to the
file, in place of its own earlier rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.pages import publish
from distill.cascade import Cascade, CascadeSpec, around_truth, fit, gradient_maps, scattered
from distill.stages import load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.data.pack import Pack, pack
from edgeface.data.sources import data_root, open_source
from edgeface.evaluate import answer, decode
from edgeface.metrics import percentiles, point_errors, score
from edgeface.models.runner import TorchRunner
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS

RIDGES = (0.03, 0.1, 0.3)
SPREADS = (0.03, 0.06)
RESAMPLES = 1000
Points = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Labelled faces of one source at the cascade's size.

    Attributes:
        source: As typed.
        maps: (N, D, S/2, S/2) gradients of the crops.
        truth: (N, K, 2) in crop sides.
        rows: Their places in the source's pack.
    """

    source: str
    maps: torch.Tensor
    truth: Points
    rows: NDArray[np.int64]


def faces_of(source: str, task: str, *, px: int) -> Faces:
    """The faces of a source that have these landmarks."""
    cut = _pack(source, px)
    truth = cut.labels[task]
    rows = np.flatnonzero(np.isfinite(truth).all(axis=(1, 2)))
    return Faces(source=source, maps=gradient_maps(cut.images[rows]), truth=truth[rows].astype(np.float32), rows=rows)


def _pack(source: str, px: int) -> Pack:
    return pack(open_source(source, root=data_root()), px=px, margin=1.0)


def network_points(folder: Path, faces: Faces, task: str) -> Points:
    """(N, K, 2) a network's landmarks of these faces, in crop sides."""
    checkpoint = load_checkpoint(folder)
    runner = TorchRunner(load_network(checkpoint).eval(), checkpoint.model)
    outputs = answer(runner, _pack(faces.source, checkpoint.model.input_px))
    return np.asarray(decode(checkpoint.model, outputs)[task][faces.rows], np.float32)


def choose(
    train: Faces, val: Faces, starts: Mapping[float, NDArray[np.float32]], begin: Points, *, task: str, grid: int
) -> tuple[Cascade, dict[str, float]]:
    """The cascade with the least error on the validation faces.

    Args:
        train: Fitted on.
        val: Chosen on.
        starts: Spread to the starts (R, N, K, 2) drawn with it.
        begin: (V, K, 2) starts of the validation faces.

    Returns:
        The cascade, and its spread, ridge and error on the validation faces.
    """
    best: tuple[float, Cascade, dict[str, float]] | None = None
    for (spread, drawn), ridge in itertools.product(starts.items(), RIDGES):
        cascade = fit(train.maps, train.truth, drawn, spec=CascadeSpec(grid=grid, ridge=ridge))
        error = float(score(TASKS[task], cascade.run(val.maps, begin), val.truth)["nme_percent"])
        print(f"  spread {spread}, ridge {ridge}: {error:.3f} % on {val.source}", flush=True)
        if best is None or error < best[0]:
            best = error, cascade, {"spread": spread, "ridge": ridge, "val_nme_percent": error}
    assert best is not None
    return best[1], best[2]


def table(
    networks: Mapping[str, Sequence[Path]],
    *,
    task: str,
    sources: tuple[str, str, str],
    px: int,
    grid: int,
    runs: int,
    seed: int,
) -> dict[str, Any]:
    """Every row of one task; of each network its seeds."""
    began = time.process_time()
    train, val, test = (faces_of(source, task, px=px) for source in sources)
    mean = np.asarray(train.truth.mean(axis=0), np.float32)
    flat = {faces.source: np.repeat(mean[None], len(faces.truth), axis=0) for faces in (val, test)}
    starts = {
        spread: scattered(mean, count=len(train.truth), runs=runs if spread else 1, spread=spread, seed=seed)
        for spread in SPREADS
    }
    plain, picked = choose(train, val, starts, flat[val.source], task=task, grid=grid)
    found: dict[str, list[Points]] = {"mean shape": [flat[test.source]]}
    found["cascade from it"] = [plain.run(test.maps, flat[test.source])]
    chosen: dict[str, list[dict[str, float]]] = {"cascade from it": [picked]}
    against = {"mean shape": "cascade from it"}
    for name, folders in networks.items():
        alone, from_it, own_one = name, f"that cascade from {name}", f"cascade for {name}"
        against |= {alone: "cascade from it", from_it: "cascade from it", own_one: name}
        found |= {alone: [], from_it: [], own_one: []}
        chosen[own_one] = []
        for folder in folders:
            held, answers = network_points(folder, val, task), network_points(folder, test, task)
            drawn = {0.0: around_truth(train.truth, held - val.truth, runs=runs, seed=seed)}
            own, picked = choose(train, val, drawn, held, task=task, grid=grid)
            found[alone].append(answers)
            found[from_it].append(plain.run(test.maps, answers))
            found[own_one].append(own.run(test.maps, answers))
            chosen[own_one].append(picked)
    rows = [
        {
            "row": name,
            **scored(task, answers, test.truth),
            **({"gap": gap(answers, found[against[name]], test.truth, of=against[name])} if name in against else {}),
            **({"chosen": chosen[name]} if name in chosen else {}),
        }
        for name, answers in found.items()
    ]
    return {
        "task": task,
        "train": train.source,
        "val": val.source,
        "test": test.source,
        "faces": len(train.truth),
        "side_px": px,
        "grid": grid,
        "starts": runs,
        "seed": seed,
        "networks": {name: [load_checkpoint(folder).sha256 for folder in own] for name, own in networks.items()},
        "cpu_seconds": round(time.process_time() - began, 1),
        "rows": rows,
    }


def scored(task: str, seeds: Sequence[Points], truth: Points) -> dict[str, Any]:
    """Means over the seeds of every score of (N, K, 2) answers, and the mean error of `each`."""
    scores = [score(TASKS[task], answers, truth) for answers in seeds]
    means = {key: round(float(np.mean([float(one[key]) for one in scores])), 4) for key in scores[0]}
    return {**means, "each": [round(float(one["nme_percent"]), 4) for one in scores]}


def gap(first: Sequence[Points], second: Sequence[Points], truth: Points, *, of: str) -> dict[str, Any]:
    """How much larger the first row's mean error is than that of the second, which is called `of`.

    Args:
        first: (N, K, 2) answers of each seed.
        second: The same; may have another number of seeds.
        truth: (N, K, 2).
        of: Name of the second row.
    """
    one, other = (np.mean([point_errors(each, truth).mean(axis=1) for each in row], axis=0) for row in (first, second))
    differences = one - other
    draws = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = percentiles(differences[draws].mean(axis=1))
    return {
        "against": of,
        "difference": round(float(differences.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def relations(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whether the published relation, that a network's start beats the other, came out: one for each network.

    `differences` are, seed by seed, the mean error of the cascade for the network minus that of the cascade from the
    mean shape; `difference` is their mean. It held when all are below 0, did not when all are above.
    """
    errors = {row["row"]: float(row["nme_percent"]) for row in part["rows"]}
    each = {row["row"]: list(map(float, row.get("each", [row["nme_percent"]]))) for row in part["rows"]}
    found = []
    for network in sorted(part["networks"]):
        differences = [error - errors["cascade from it"] for error in each[f"cascade for {network}"]]
        held = all(difference < 0.0 for difference in differences)
        verdict = "held" if held else "undecided" if any(d < 0.0 for d in differences) else "did not hold"
        reason = ""
        if not held and errors[network] > errors["cascade from it"]:
            reason = (
                f"the network's own error, {errors[network]:.2f} %, is above what the cascade reaches without it, "
                f"{errors['cascade from it']:.2f} %: it was trained for minutes only"
            )
        found.append(
            {
                "network": network,
                "difference": float(np.mean(differences)),
                "differences": differences,
                "verdict": verdict,
                "reason": reason,
            }
        )
    return found


def published(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The relations of all tasks, as the page of all tables lists them."""
    return [
        {
            "says": f"{part['task']}, `{one['network']}`: a start from the network beats one from the mean shape",
            "source": "Zhang et al., ECCV 2014 (with another cascade)",
            "gains": [-difference for difference in one["differences"]],
            "reason": one["reason"],
        }
        for part in result["tables"]
        for one in relations(part)
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    lines = ["# A cascade from a network's landmarks and from the mean shape", ""]
    lines += [*result["about"].splitlines(), ""]
    for part in result["tables"]:
        lines += [
            f"## {part['task']}: {part['train']}, tested on {part['test']}",
            "",
            f"`{part['command']}`",
            "",
            "| row | mean error, % | failures, % | against | difference, points (95 % interval) |",
            "|---|---:|---:|---|---:|",
        ]
        for row in part["rows"]:
            gap = row.get("gap")
            told = "" if gap is None else f"{gap['difference']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
            lines.append(
                f"| {row['row']} | {row['nme_percent']:.2f} | {row['failure_percent']:.2f} "
                f"| {'' if gap is None else gap['against']} | {told} |"
            )
        lines += [
            "",
            f"{part['rows'][0]['n']:.0f} test faces, {part['faces']} training faces, crops of {part['side_px']} px, "
            f"{part['cpu_seconds']:.0f} s of one core for all fits. Commit {part['commit']}.",
            "",
            "| published: a start from the network beats one from the mean shape | difference, points | verdict "
            "| likely reason |",
            "|---|---:|---|---|",
            *(
                f"| `{one['network']}` | {one['difference']:+.2f} | {one['verdict']} | {one['reason']} |"
                for one in relations(part)
            ),
            "",
        ]
    return "\n".join(lines)


ABOUT = """\
The supervised descent method (distill/cascade.py): gradient histograms around each point, five ridge regressions. Ridge
and spread are chosen on the validation faces. TCDCN's authors started another cascade (RCPR) from their network instead
of from training shapes; which gain they saw is not confirmed here, so only the direction can be compared."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--task", default="landmarks5")
    parser.add_argument("--train", default="mtfl@train")
    parser.add_argument("--val", default="mtfl@val")
    parser.add_argument("--test", default="mtfl@test")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cascade.json"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    networks: dict[str, list[Path]] = defaultdict(list)
    for name, _, folder in (text.partition("=") for text in asked.networks):
        networks[name].append(Path(folder))
    part = table(
        networks,
        task=asked.task,
        sources=(asked.train, asked.val, asked.test),
        px=asked.px,
        grid=asked.grid,
        runs=asked.starts,
        seed=asked.seed,
    )
    part |= {"command": _command(asked), "commit": commit()}
    before = json.loads(asked.out.read_text(encoding="utf-8"))["tables"] if asked.out.is_file() else []
    result = {
        "about": ABOUT,
        "tables": sorted(
            [*(old for old in before if old["task"] != part["task"]), part], key=lambda each: each["task"]
        ),
        "conditions": {"machine": cpu(), "threads": 1, "versions": versions()},
    }
    publish(result, markdown(result), asked.out)


def _command(asked: argparse.Namespace) -> str:
    words = ["python -m benchmarks.cascade", f"--task {asked.task}", f"--grid {asked.grid}", f"--starts {asked.starts}"]
    words += [f"--{key} {getattr(asked, key)}" for key in ("train", "val", "test")]
    return " ".join([*words, *asked.networks])


if __name__ == "__main__":
    main()
