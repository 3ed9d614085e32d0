"""Do the ratios of `edgeface bench` hold? Five calls of it with the fp32 and the w8a8 file of a bundle and foreign
files side by side, on the machine as it is and again with a busy neighbour on every core.

    python -m benchmarks.bench_stability out/android [--also MODEL...] [--runs 400] [--calls 5] [--out FILE.json]

Each call is a process of its own. The neighbours are processes that do nothing but count, one pinned to each core, at
the same priority. Foreign files are those of `benchmarks.peer_shapes`: MobileNetV1-0.25 at 128 px with random weights.
A ratio's spread is its largest less its smallest value over the calls, over their median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ALLOWED_PERCENT = 10.0
_NEIGHBOUR = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: sum(range(100000))"


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """That many busy processes, each pinned to a core of its own."""
    started = [
        subprocess.Popen([sys.executable, "-c", _NEIGHBOUR, str(core)])
        for core in sorted(os.sched_getaffinity(0))[:count]
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(words: Sequence[str], *, calls: int) -> list[dict[str, Any]]:
    """What `edgeface bench` answers, several times over."""
    command = [sys.executable, "-m", "edgeface", "bench", *words, "--json"]
    answers = []
    for _ in range(calls):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"edgeface bench ended with {done.returncode}: {done.stdout or done.stderr}")
        answers.append(json.loads(done.stdout))
    return answers


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per model: the ratio of each call and their spread, and what the clock on the wall said."""
    rows = []
    bases = [answer["rows"][0]["median_ms"] for answer in answers]
    for place, first in enumerate(answers[0]["rows"]):
        each = [answer["rows"][place] for answer in answers]
        ratios = [row["ratio_to_first"] for row in each]
        medians = [row["median_ms"] for row in each]
        rows.append(
            {
                "model": Path(first["model"]).name,
                "runtime": f"{first['runtime']} {first['runtime_version']}",
                "precision": first["precision"],
                "ratios": ratios,
                "ratio_spread_percent": spread_percent(ratios),
                "median_ms": medians,
                "wall_ratio_spread_percent": spread_percent(
                    [base / median for base, median in zip(bases, medians, strict=True)]
                ),
                "waited_percent": [row["waited_percent"] for row in each],
            }
        )
    return {"rows": rows, "load_average": [answer["conditions"]["load_average"] for answer in answers]}


def spread_percent(values: Sequence[float]) -> float:
    return 100.0 * (max(values) - min(values)) / statistics.median(values)


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each state of the machine."""
    parts = []
    for name, title in (("as_it_is", "The machine as it was"), ("neighbours", "With a busy neighbour on every core")):
        part = found[name]
        loads = [load for pair in part["load_average"] for load in pair if load is not None]
        lines = [
            f"## {title} (load {min(loads):.1f} to {max(loads):.1f})\n",
            "| model | runtime | ms on the wall | waited for the core | ratio to the first, each call | spread |",
            "|---|---|---|---|---|---|",
        ]
        for row in part["rows"]:
            waited = [value for value in row["waited_percent"] if value is not None]
            lines.append(
                f"| `{row['model']}` {row['precision']} | {row['runtime']} "
                f"| {min(row['median_ms']):.3f} – {max(row['median_ms']):.3f} "
                f"| {min(waited):.0f} – {max(waited):.0f} % | {' '.join(f'{ratio:.3f}' for ratio in row['ratios'])} "
                f"| {row['ratio_spread_percent']:.1f} % |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--also", nargs="*", default=[], help="further models, such as a teacher's checkpoint")
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bench_stability.json"))
    options = parser.parse_args()
    from benchmarks.peer_shapes import write_onnx, write_tflite

    with tempfile.TemporaryDirectory() as folder:
        foreign = [*write_tflite(Path(folder)), write_onnx(Path(folder))]
        words = [str(options.bundle), *map(str, foreign), *options.also]
        words += ["--precision", "fp32,w8a8", "--starts", "0", "--runs", str(options.runs)]
        quiet = measure(words, calls=options.calls)
        with neighbours(len(os.sched_getaffinity(0))):
            noisy = measure(words, calls=options.calls)
    found = {
        "schema": 1,
        "calls": options.calls,
        "as_it_is": summary(quiet),
        "neighbours": summary(noisy),
        "conditions": quiet[0]["conditions"],
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    worst = max(row["ratio_spread_percent"] for name in ("as_it_is", "neighbours") for row in found[name]["rows"])
    head = (
        f"# Are the ratios of `edgeface bench` stable?\n\n{options.calls} calls of `edgeface bench` with "
        f"{options.runs} runs each, written by `python -m benchmarks.bench_stability` (conditions in the JSON). The "
        "foreign files are MobileNetV1-0.25 at 128 px with random weights, made by `benchmarks/peer_shapes.py`. "
        f"Largest spread of a ratio: {worst:.1f} % (asked: at most {ALLOWED_PERCENT:.0f} %).\n\n"
    )
    options.out.with_suffix(".md").write_text(head + markdown(found) + "\n", encoding="utf-8")
    print(head + markdown(found))
    sys.exit(0 if worst <= ALLOWED_PERCENT else 1)


if __name__ == "__main__":
    main()
