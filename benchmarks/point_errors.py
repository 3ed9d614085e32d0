"""Landmark errors point by point, and the share of faces below each error, of trained networks side by side.

    EDGEFACE_DATA=FOLDER python -m benchmarks.point_errors alone=runs/tables/landmarks-alone-0/teacher \\
        smile=runs/tables/landmarks-smile-0/teacher [--data mtfl@test] [--out benchmarks/results/point_errors.json]

Zhang et al. (ECCV 2014, figures 5 and 7) show which points gain from an auxiliary task, and cumulative error curves.
Several networks of one name are seeds of one row, in the same order in each row: their figures are averaged.
Differences are against the first row, on the same faces; the interval is a paired bootstrap over faces of the error
averaged over the seeds, and says nothing of what other seeds would give: for that `by_seed` has the differences of
each.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.correlation import POINTS
from benchmarks.pages import publish
from distill.stages import load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.data.sources import data_root
from edgeface.errors import UsageError
from edgeface.evaluate import answer, decode, evaluation_pack
from edgeface.metrics import FAILURE_PERCENT, cumulative_curve, known, percentiles, point_errors
from edgeface.models.runner import TorchRunner
from edgeface.provenance import commit, cpu, versions
from edgeface.report.scorecard import CURVE_PERCENT
from edgeface.tasks import TASKS

TASK = "landmarks5"
RESAMPLES = 1000
Floats = NDArray[np.float64]


def errors_of(folder: Path, source: str) -> Floats:
    """(N, K) percent of the distance between the eyes, over the labelled faces of a source."""
    checkpoint = load_checkpoint(folder)
    faces = evaluation_pack(source, checkpoint.model, root=data_root())
    labels = faces.labels[TASK]
    rows = known(TASKS[TASK], labels)
    runner = TorchRunner(load_network(checkpoint), checkpoint.model)
    points = decode(checkpoint.model, answer(runner, faces))[TASK]
    return point_errors(points[rows], labels[rows])


def table(errors: Mapping[str, Sequence[Floats]], *, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each name, from the (N, K) errors of its seeds.

    Raises:
        UsageError: A row has another number of seeds than the first.
    """
    firsts = next(iter(errors.values()))
    counts = {name: len(seeds) for name, seeds in errors.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"seeds {counts}", expected="as many of each row", where="NAME=CHECKPOINT", do="Add the others"
        )
    first = np.mean(firsts, axis=0)
    draws = np.random.default_rng(seed).integers(0, len(first), (RESAMPLES, len(first)))
    rows = []
    for name, seeds in errors.items():
        mean = np.mean(seeds, axis=0)
        gap = mean - first
        ends = [percentiles(column[draws].mean(axis=1)) for column in (*gap.T, gap.mean(axis=1))]
        faces = np.stack([one.mean(axis=1) for one in seeds])
        rows.append(
            {
                "row": name,
                "seeds": len(seeds),
                "nme_percent": float(faces.mean()),
                "failure_percent": float(100.0 * (faces > FAILURE_PERCENT).mean()),
                "points": dict(zip(POINTS, mean.mean(axis=0).tolist(), strict=True)),
                "against_first": {
                    point: {"difference": float(column.mean()), "low": low, "high": high}
                    for point, column, (low, high) in zip(
                        (*POINTS, "all"), (*gap.T, gap.mean(axis=1)), ends, strict=True
                    )
                },
                "by_seed": {
                    point: [
                        float((mine - its).mean(axis=0)[places].mean()) for mine, its in zip(seeds, firsts, strict=True)
                    ]
                    for point, places in (*((point, [at]) for at, point in enumerate(POINTS)), ("all", slice(None)))
                },
                "curve": np.mean([cumulative_curve(one, np.array(CURVE_PERCENT)) for one in faces], axis=0).tolist(),
            }
        )
    return rows


# What an attribute is said to help: Zhang et al., ECCV 2014, section 4.2 and figure 5.
HELPED = {"smile": ("nose", "left mouth", "right mouth"), "pose": POINTS}


def published(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whether the points that an attribute is said to help had a smaller error beside it, seed by seed."""
    rows = {row["row"]: row for row in result["rows"]}
    return [
        {
            "says": f"{name} helps the {point}",
            "source": "Zhang et al., ECCV 2014, figure 5",
            "gains": [-difference for difference in _by_seed(rows[name], point)],
            "reason": "so few minutes leave the network underfitted, and an attribute takes capacity (landmarks table)",
        }
        for name in HELPED
        if name in rows
        for point in HELPED[name]
    ]


def _by_seed(row: Mapping[str, Any], point: str) -> list[float]:
    """Differences of each seed; of a page with one seed, which has no list of them, the mean is that of the seed."""
    found: list[float] = row["by_seed"][point] if "by_seed" in row else [row["against_first"][point]["difference"]]
    return found


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The cumulative curves, and each point's difference against the first row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11.0, 4.2), constrained_layout=True)
    for place, row in enumerate(rows):
        left.plot(CURVE_PERCENT, [100.0 * share for share in row["curve"]], label=row["row"])
        if place:
            gaps = [row["against_first"][point] for point in POINTS]
            spots = np.arange(len(POINTS)) + 0.12 * (place - len(rows) / 2)
            middle = [gap["difference"] for gap in gaps]
            ends = [
                [gap["difference"] - gap["low"] for gap in gaps],
                [gap["high"] - gap["difference"] for gap in gaps],
            ]
            right.errorbar(spots, middle, yerr=ends, fmt="o", ms=4, color=f"C{place}", label=row["row"])
    left.axvline(FAILURE_PERCENT, color="grey", lw=0.8, ls=":")
    left.set_xlabel("mean error of a face, % of the distance between the eyes")
    left.set_ylabel("faces, %")
    left.legend(frameon=False)
    right.axhline(0.0, color="grey", lw=0.8)
    right.set_xticks(range(len(POINTS)), POINTS)
    right.set_ylabel(f"error against '{rows[0]['row']}', points")
    right.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result."""
    lines = ["# Errors point by point, and cumulative curves", "", *ABOUT.splitlines(), ""]
    lines += [f"`{result['command']}`, {result['faces']:,} faces of {result['source']}, commit {result['commit']}.", ""]
    lines += [f"![Cumulative curves and differences]({result['picture']})", ""]
    lines += [
        f"| trained on landmarks and | seeds | mean error, % | failures, % | {' | '.join(POINTS)} |",
        "|---|---:|---:|---:|" + "---:|" * len(POINTS),
    ]
    for row in result["rows"]:
        cells = [row["row"], str(row["seeds"]), f"{row['nme_percent']:.2f}", f"{row['failure_percent']:.2f}"]
        lines.append("| " + " | ".join([*cells, *(f"{row['points'][point]:.2f}" for point in POINTS)]) + " |")
    first = result["rows"][0]["row"]
    lines += ["", f"Difference against `{first}`, points of error (95 % interval over faces), below 0 is better:", ""]
    lines += [f"| | {' | '.join(POINTS)} | all |", "|---|" + "---:|" * (len(POINTS) + 1)]
    for row in result["rows"][1:]:
        gaps = [row["against_first"][point] for point in (*POINTS, "all")]
        cells = [f"{gap['difference']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})" for gap in gaps]
        lines.append("| " + " | ".join([row["row"], *cells]) + " |")
    return "\n".join([*lines, ""])


ABOUT = """\
TCDCN trained on five landmarks alone and with an attribute beside them, under one short budget (the landmarks table).
Errors are over the distance between the eyes; a failure is a face above 10 %. Zhang et al. (ECCV 2014) say that smile
helps the nose and the corners of the mouth, and pose all points. Intervals are over faces alone, not over seeds."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--data", default="mtfl@test")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/point_errors.json"))
    asked = parser.parse_args(arguments)
    errors: dict[str, list[Floats]] = defaultdict(list)
    digests = []
    for name, _, folder in (text.partition("=") for text in asked.networks):
        errors[name].append(errors_of(Path(folder), asked.data))
        digests.append({"row": name, "weights": load_checkpoint(Path(folder)).sha256})
    rows = table(errors)
    drawn = asked.out.with_suffix(".png")
    picture(rows, drawn)
    result = {
        "command": " ".join(["python -m benchmarks.point_errors", *(f'"{text}"' for text in asked.networks)]),
        "commit": commit(),
        "source": asked.data,
        "faces": len(next(iter(errors.values()))[0]),
        "picture": drawn.name,
        "thresholds_percent": list(CURVE_PERCENT),
        "networks": digests,
        "rows": rows,
        "conditions": {"machine": cpu(), "versions": versions()},
    }
    publish(result, markdown(result), asked.out)


if __name__ == "__main__":
    main()
