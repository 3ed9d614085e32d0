"""Which tasks look at the same features: Pearson's correlation of the weights that their heads learned.

    python -m benchmarks.correlation mtfl-cpu=runs/mtfl-cpu/teacher tcdcn=runs/landmarks-all/teacher \\
        [--out benchmarks/results/correlation.json]

Zhang et al. (ECCV 2014, figure 5) call it a crude method: the weight vectors of the last layer, which all read the same
shared features, are correlated over those features. Rows are the landmarks, x and y apart, and every class; a task of
two classes is one row, its second class minus its first. A point's own figure is the mean of the absolute correlations
of its x and its y. Several networks of one name are its seeds: the table is their mean, and the picture is the matrix
of the first. Networks of other names that the file holds already stay in it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.pages import publish
from distill.stages import load_network
from edgeface.checkpoint import load_checkpoint
from edgeface.errors import UnsupportedError
from edgeface.files import read_json
from edgeface.models.network import MultiTaskNetwork
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS, Kind

POINTS = ("left eye", "right eye", "nose", "left mouth", "right mouth")


def weight_rows(network: MultiTaskNetwork) -> dict[str, NDArray[np.float64]]:
    """The weights that read the shared features, by what they answer: each (D,).

    Landmarks come as "landmarks5: left eye x"; a class as "pose: frontal"; of two classes only the second, less the
    first, under the task's name.
    """
    rows: dict[str, NDArray[np.float64]] = {}
    for name, head in network.heads.items():
        assert isinstance(head, nn.Linear)
        task = TASKS[name]
        weights = head.weight.detach().double().numpy()
        if task.kind is Kind.LANDMARKS:
            points = POINTS if task.points == len(POINTS) else tuple(map(str, range(task.points)))
            labels = [f"{name}: {point} {axis}" for point in points for axis in "xy"]
        elif len(weights) == 2 and task.kind is Kind.CLASSES:
            labels, weights = [name], weights[1:] - weights[:1]
        else:
            labels = [f"{name}: {label.replace('_', ' ')}" for label in task.classes or map(str, range(len(weights)))]
        rows |= dict(zip(labels, weights, strict=True))
    return rows


def correlations(rows: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """(R, R) Pearson correlations of the rows, in their order."""
    return np.corrcoef(np.stack(list(rows.values())))


def by_point(rows: Mapping[str, NDArray[np.float64]], matrix: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Row that is no landmark to point to the mean absolute correlation with that point's x and y."""
    names = list(rows)
    points: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name.startswith("landmarks"):
            points.setdefault(name.partition(": ")[2][:-2], []).append(place)
    return {
        name: {point: round(float(np.abs(matrix[row, places]).mean()), 4) for point, places in points.items()}
        for row, name in enumerate(names)
        if not name.startswith("landmarks")
    }


def picture(rows: Mapping[str, NDArray[np.float64]], matrix: NDArray[np.float64], path: Path, *, title: str) -> None:
    """The matrix as a picture, red for alike and blue for opposite."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name.partition(": ")[2] or name for name in rows]
    figure, axes = pyplot.subplots(figsize=(8.0, 7.0), layout="constrained")
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for row in range(len(names)):
        for column in range(len(names)):
            value = matrix[row, column]
            if abs(value) >= 0.05:  # the rest would be zeros
                colour = "white" if abs(value) > 0.6 else "black"
                text = f"{value:.1f}".replace("0.", ".")
                axes.text(column, row, text, ha="center", va="center", size=6, color=colour)
    starts = [place for place, name in enumerate(rows) if place and _task(name) != _task(list(rows)[place - 1])]
    for place in starts:
        axes.axhline(place - 0.5, color="black", linewidth=0.8)
        axes.axvline(place - 0.5, color="black", linewidth=0.8)
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="Pearson's correlation of the learned weights", shrink=0.8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _task(name: str) -> str:
    return name.partition(":")[0]


def mean_of(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of tables as `by_point` gives them, entry by entry."""
    return {
        name: {point: round(float(np.mean([table[name][point] for table in tables])), 4) for point in row}
        for name, row in tables[0].items()
    }


def measure(name: str, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """The figures of the seeds of one network, and the picture of the first beside `out`.

    Raises:
        UnsupportedError: Its landmarks have no weights to compare, as those from heatmaps.
    """
    checkpoints = [load_checkpoint(folder) for folder in folders]
    seeds = [weight_rows(load_network(checkpoint)) for checkpoint in checkpoints]
    for folder, found in zip(folders, seeds, strict=True):
        if not any(row.startswith("landmarks") for row in found):
            raise UnsupportedError(
                f"{', '.join(dict.fromkeys(map(_task, found)))}, and no landmarks that a layer reads from the features",
                expected='a network with landmark_head = "linear"',
                where=str(folder),
                do="Name another network",
            )
    by_seed = [by_point(rows, correlations(rows)) for rows in seeds]
    checkpoint, rows, matrix = checkpoints[0], seeds[0], correlations(seeds[0])
    drawn = out.with_name(f"{out.stem}-{name}.png")
    width = len(next(iter(rows.values())))
    picture(rows, matrix, drawn, title=f"{name}: {checkpoint.network.backbone}, {width} shared features")
    return {
        "name": name,
        "command": " ".join(["python -m benchmarks.correlation", *(f"{name}={folder}" for folder in folders)]),
        "commit": commit(),
        "conditions": {"machine": cpu(), "versions": versions()},
        "backbone": checkpoint.network.backbone,
        "features": width,
        "checkpoint": [one.sha256 for one in checkpoints],
        "picture": drawn.name,
        "rows": list(rows),
        "matrix": matrix.round(4).tolist(),
        "points": mean_of(by_seed),
        "by_seed": by_seed,
        # of weights without anything in common, 19 in 20 lie below this
        "chance": round(1.96 / float(np.sqrt(width)), 4),
    }


def published(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whether smile reads what nose and mouth read more than what the eyes read, seed by seed, correlation times 100.

    A reader of the figure finds the right eye beside them; the mean of both eyes is what they are held against.
    """
    found = []
    for network in result["networks"]:
        seeds = [table["smile"] for table in network.get("by_seed", [network["points"]]) if "smile" in table]
        gains = [
            100.0 * float(np.mean([row[p] for p in ("nose", *POINTS[3:])]) - np.mean([row[p] for p in POINTS[:2]]))
            for row in seeds
        ]
        found.append(
            {
                "says": f"`{network['name']}`: smile's weights are more like those of nose and mouth than the eyes'",
                "source": "Zhang et al., ECCV 2014, figure 5",
                "gains": gains,
                "reason": "",
            }
        )
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    lines = ["# Correlation of the tasks' learned weights", "", *ABOUT.splitlines(), ""]
    for network in result["networks"]:
        points = list(next(iter(network["points"].values())))
        lines += [
            f"## {network['name']}: {network['backbone']}, {network['features']} shared features{_seeds(network)}",
            "",
            f"![The matrix]({network['picture']})",
            "",
            f"| | {' | '.join(points)} |",
            "|---|" + "---:|" * len(points),
            *(
                f"| {name} | {' | '.join(f'{value:.2f}' for value in of.values())} |"
                for name, of in network["points"].items()
            ),
            "",
            f"Of unrelated weights 19 in 20 lie below {network['chance']:.2f}, so a mean of two rarely reaches it. "
            f"`{network['command']}`, commit {network['commit']}.",
            "",
        ]
    return "\n".join(lines)


def _seeds(network: Mapping[str, Any]) -> str:
    count = len(network.get("by_seed", [0]))  # a page of one seed has no list of them
    return f", mean of {count} seeds" if count > 1 else ""


ABOUT = """\
Pearson's correlation, over the shared features, between the weights of a landmark's coordinates and those of a class;
the mean of the absolute values of x and y. The measure of Zhang et al., ECCV 2014, figure 5, who call it crude: weights
depend on the features' scales, and a correlation is no cause."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/correlation.json"))
    asked = parser.parse_args(arguments)
    named: dict[str, list[Path]] = defaultdict(list)
    for name, _, folder in (text.partition("=") for text in asked.networks):
        named[name].append(Path(folder))
    earlier = read_json(asked.out)["networks"] if asked.out.is_file() else []
    measured = {name: measure(name, folders, asked.out) for name, folders in named.items()}
    result = {
        "networks": list(({network["name"]: network for network in earlier} | measured).values()),
        "conditions": {"machine": cpu(), "versions": versions()},  # of those measured now; each has its own
    }
    publish(result, markdown(result), asked.out)


if __name__ == "__main__":
    main()
