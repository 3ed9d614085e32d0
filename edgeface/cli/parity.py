"""`edgeface parity`: two models output by output on the same faces."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from targets.parity import Parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REFERENCE", type=Path, help="what the model should agree with")
    parser.add_argument("model", metavar="MODEL", type=Path, help="a run, a checkpoint, a bundle or a model file")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="faces: CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT], folder:PATH or webdataset:PATH",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help=f"of MODEL: one of {', '.join(RUNTIMES)}")
    parser.add_argument("--precision", metavar="P", help="which file of MODEL, a bundle; default: w8a8")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    parser.add_argument(
        "--spec", metavar="FILE", help="a TOML or JSON file that says what a MODEL of others takes and answers"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first sample that cannot be read")


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import progress
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluation_pack
    from targets.parity import compare
    from targets.runners import open_to_score

    reference = open_to_score(arguments.reference, threads=arguments.threads)
    model = open_to_score(
        arguments.model,
        runtime=arguments.runtime,
        precision=arguments.precision,
        threads=arguments.threads,
        described=arguments.spec,
    )
    with progress() as bar:
        task = bar.add_task(f"parity on {arguments.data}", total=None, note="")
        pack = evaluation_pack(arguments.data, reference.spec, root=data_root(), strict=arguments.strict)
        found = compare(
            reference,
            model,
            images=pack.images,
            progress=lambda done: bar.update(task, completed=done, total=len(pack.images)),
        )
    names = (
        f"{arguments.reference} ({reference.precision} on {reference.runtime})",
        f"{arguments.model} ({model.precision} on {model.runtime})",
    )
    payload = {
        **found.as_json(),
        "reference": str(arguments.reference),
        "model": str(arguments.model),
        "runtime": model.runtime,
        "precision": model.precision,
        "data": arguments.data,
    }
    return Result(payload=payload, text=_rendered(found, *names), exit_code=1 if found.passed is False else 0)


def _rendered(found: Parity, reference: str, model: str) -> RenderableType:
    from rich.console import Group

    from edgeface.cli.console import table

    rows = [
        [
            name,
            f"{output.max_abs:.3g}",
            f"{output.mean_abs:.3g}",
            "same" if math.isinf(output.sqnr_db) and output.sqnr_db > 0 else f"{output.sqnr_db:.1f}",
            "–" if output.max_lsb is None else f"{output.max_lsb:.2f}",
            "–" if output.within_1_lsb is None else f"{output.within_1_lsb:.3%}",
            f"{output.exact:.3%}",
            str(output.n),
        ]
        for name, output in found.outputs.items()
    ]
    columns = ["output", "max abs", "mean abs", "SQNR dB", "max LSB", "within 1 LSB", "exact", "values"]
    parts: list[RenderableType] = [table(columns, rows, title=f"{model} against {reference}, {found.samples} faces")]
    if found.simulator is not None:
        parts.append(f"integer simulator: {found.simulator:.4%} of outputs equal")
    verdict = {None: "measured; no rule for this pair", True: "pass", False: "FAIL"}[found.passed]
    return Group(*parts, f"parity: {verdict}{_rule(found)}")


def _rule(found: Parity) -> str:
    if found.rule is None:
        return ""
    if found.rule.within_1_lsb is not None:
        same = "" if found.rule.exact is None else f", {found.rule.exact:.1%} on the same step"
        return f" (asked: {found.rule.within_1_lsb:.0%} of values within 1 LSB{same})"
    return f" (asked: {found.rule.sqnr_db:.0f} dB on each output)"
