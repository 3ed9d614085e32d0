"""`edgeface bench`: time models side by side, interleaved, so that ratios hold on a noisy machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from targets.bench import Bench, Row

_STARTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="runs, checkpoints, bundles or model files, of edgeface or of anyone; the first is the yardstick",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    parser.add_argument("--runs", type=int, default=400, metavar="N", help="timed runs of each model; default: 400")
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help=f"one of {', '.join(RUNTIMES)}")
    parser.add_argument(
        "--precision", metavar="P[,P…]", help="which files of a bundle, such as fp32,w8a8; default: w8a8"
    )
    parser.add_argument(
        "--sustained",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="then run each model so long without a pause and compare the first second with the last, such as 60",
    )
    parser.add_argument(
        "--starts",
        type=int,
        default=_STARTS,
        metavar="N",
        help=f"processes in which load time and memory are measured; 0: not at all; default: {_STARTS}",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where checkpoints run; files run on the CPU"
    )
    parser.add_argument(
        "--spec", metavar="FILE", help="a TOML or JSON file that says what a file of others takes and answers"
    )


def run(arguments: argparse.Namespace) -> Result:
    # Before NumPy is loaded: on the core this process is pinned to, several threads of its BLAS wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(arguments.threads, 1)))
    from edgeface.cli.console import progress
    from targets.bench import bench
    from targets.runners import is_bundle

    precisions = arguments.precision.split(",") if arguments.precision else [None]
    # A list of precisions chooses among a bundle's files; everything else has one precision.
    models = [
        (model, arguments.runtime, precision)
        for model in arguments.models
        for precision in (precisions if len(precisions) == 1 or is_bundle(Path(model)) else [None])
    ]
    with progress() as bar:
        task = bar.add_task("bench", total=None, note="opening")
        found = bench(
            models,
            threads=arguments.threads,
            runs=arguments.runs,
            starts=arguments.starts,
            sustained_s=arguments.sustained,
            described=arguments.spec,
            device=arguments.device,
            told=lambda words: bar.update(task, note=words),
        )
    return Result(payload=found.as_json(), text=_rendered(found))


def _rendered(found: Bench) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table

    parts: list[RenderableType] = []
    columns = ["model", "runtime", "median ms", "p90", "p99", "speed", "95 %", "bytes", "MMAC"]
    rows = [
        [
            _name(row),
            _runtime(row),
            f"{row.median_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{row.p99_ms:.3f}",
            f"{row.ratio_to_first:.3g}x",
            f"{row.ratio_interval[0]:.3g} – {row.ratio_interval[1]:.3g}",
            f"{row.size_bytes:,}",
            "–" if row.macs is None else f"{row.macs / 1e6:.1f}",
        ]
        for row in found.rows
    ]
    parts.append(table(columns, rows))
    costs = [
        [
            _name(row),
            *(
                ["–"] * 4
                if row.split is None
                else [
                    f"{value:.3f}"
                    for value in (row.split.pre_ms, row.split.inference_ms, row.split.post_ms, row.split.whole_ms)
                ]
            ),
            "–" if row.load_ms is None else f"{row.load_ms:.1f}",
            "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.1f}",
            f"{row.spread_percent:.1f}",
            "–" if row.waited_percent is None else f"{row.waited_percent:.0f}",
        ]
        for row in found.rows
    ]
    heads = ["model", "pre ms", "inference", "post", "photo to answer", "load ms", "peak MiB", "spread %", "waited %"]
    parts.append(table(heads, costs))
    parts += [f"{_name(row)}: {_operations(row)}" for row in found.rows if row.operations]
    parts += [f"{_name(row)}: {_sustained(row)}" for row in found.rows if row.sustained]
    conditions = found.conditions
    cpu = conditions["cpu"]
    assert isinstance(cpu, dict)
    parts += [
        "",
        "speed: the first model's time over this one's, median over rounds, with its 95 % interval",
        Text(
            f"{cpu['model']} ({' '.join(cpu['flags']) or cpu['machine']}), {conditions['threads']} thread(s) on core "
            f"{conditions['pinned_to_cores']}, {conditions['runs']} runs each in {conditions['rounds']} interleaved "
            f"rounds, load {conditions['load_average']}",
            "dim",
        ),
    ]
    if found.noisy:
        parts.append(Text("others use this machine: quote the ratios, not the milliseconds", "yellow"))
    return Group(*parts)


def _name(row: Row) -> str:
    return row.model if row.model.rstrip("/").rpartition("/")[2].count(".") else f"{row.model} {row.precision}"


def _runtime(row: Row) -> str:
    where = "" if row.device == "CPU" else f" on {row.device}"
    return f"{row.runtime} {row.runtime_version}".strip() + where


def _operations(row: Row) -> str:
    """ "xnnpack 16 (CONV_2D 8, …), builtin 1 (QUANTIZE 1)"."""
    assert row.operations is not None
    return ", ".join(
        f"{executor} {sum(counts.values())} ({', '.join(f'{kind} {n}' for kind, n in counts.items())})"
        for executor, counts in row.operations.items()
        if counts
    )


def _sustained(row: Row) -> str:
    assert row.sustained is not None
    said = {True: "throttled", False: "not throttled", None: "others took the core: throttling cannot be told"}
    held = row.sustained
    return (
        f"first second {held.first_ms:.3f} ms, last of {len(held.curve)} {held.last_ms:.3f} ms "
        f"({held.slowdown:.2f} of the first): {said[held.throttled]}"
    )
