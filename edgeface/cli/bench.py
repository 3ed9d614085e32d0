"""`edgeface bench`: time models side by side, interleaved, so that ratios hold on a noisy machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from targets.bench import Bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="runs, checkpoints, bundles or model files; the first is the yardstick",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    parser.add_argument("--runs", type=int, default=400, metavar="N", help="timed runs of each model; default: 400")
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help=f"one of {', '.join(RUNTIMES)}")
    parser.add_argument(
        "--precision", metavar="P[,P…]", help="which files of a bundle, such as fp32,w8a8; default: w8a8"
    )


def run(arguments: argparse.Namespace) -> Result:
    from targets.bench import bench

    precisions = arguments.precision.split(",") if arguments.precision else [None]
    models = [(model, arguments.runtime, precision) for model in arguments.models for precision in precisions]
    found = bench(models, threads=arguments.threads, runs=arguments.runs)
    return Result(payload=found.as_json(), text=_rendered(found))


def _rendered(found: Bench) -> RenderableType:
    from rich.console import Group

    from edgeface.cli.console import table

    rows = [
        [
            row.model,
            row.precision,
            row.runtime,
            f"{row.median_ms:.4f}",
            f"{row.p90_ms:.4f}",
            f"{row.p99_ms:.4f}",
            f"{row.ratio_to_first:.2f}x",
            f"{row.size_bytes:,}",
            "–" if row.macs is None else f"{row.macs / 1e6:.2f}",
        ]
        for row in found.rows
    ]
    columns = ["model", "precision", "runtime", "median ms", "p90", "p99", "speed", "bytes", "MMAC"]
    cpu = found.conditions["cpu"]
    assert isinstance(cpu, dict)
    how = (
        f"{cpu['model']}, {found.conditions['threads']} thread(s), {found.conditions['runs']} runs each in "
        f"{found.conditions['rounds']} interleaved rounds, one picture a run"
    )
    return Group(table(columns, rows, title=how), "speed: the first model's time over this one's")
