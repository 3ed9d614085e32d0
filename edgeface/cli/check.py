"""`edgeface check`: a model on the device it ships to, compared with what it should answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result
from edgeface.specs import RUNTIMES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from targets.devices.answer import Check, Row
    from targets.devices.shipped import Faces, Shipped

EXIT_CODES = {"PASS": 0, "FAIL": 1, "NOT_RUN": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="a bundle, a model file of ours or of anyone, a run or a checkpoint",
    )
    parser.add_argument(
        "--on",
        required=True,
        metavar="DEVICE",
        help="host (this machine), arm64 (emulated here), ssh:USER@HOST[:PORT], adb[:SERIAL] or macos",
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="SOURCE",
        help="also faces of CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT] or folder:PATH, evenly chosen",
    )
    parser.add_argument(
        "--n",
        type=int,
        default=64,
        metavar="N",
        help="faces of SOURCE beside the golden ones; without SOURCE faces in all, drawn ones added; default: 64",
    )
    parser.add_argument("--cpu", metavar="CPU", help="processor that arm64 imitates: a53, a72, a76 or n1; default: a72")
    parser.add_argument("--precision", metavar="P[,P…]", help="which files, such as w8a8,fp16; default: all")
    parser.add_argument("--runtime", choices=RUNTIMES, metavar="R", help="only this one; default: every one there")
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="a TOML or JSON file that says what a MODEL of others takes and answers",
    )
    parser.add_argument(
        "--verify-key",
        type=Path,
        metavar="PUB",
        help="refuse a bundle that is not, file by file, what the other half of this ed25519 key (PEM) signed",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; default: 1")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object there")


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import note
    from edgeface.errors import MissingToolError, UsageError
    from targets.devices import open_device
    from targets.devices.answer import not_run
    from targets.devices.check import check
    from targets.devices.shipped import open_to_check

    if arguments.threads < 1:
        raise UsageError(f"{arguments.threads} threads", expected="1 or more", where="--threads")
    if arguments.verify_key is not None:
        from targets.signing import public_key, verify

        verify(arguments.model, key=public_key(arguments.verify_key))
    try:
        shipped = open_to_check(arguments.model, precisions=_listed(arguments.precision), described=arguments.spec)
        device = open_device(arguments.on, cpu=arguments.cpu)
        faces = _faces(shipped, arguments.data, arguments.n)
        found = check(shipped, device, faces=faces, threads=arguments.threads, runtime=arguments.runtime, told=note)
    except MissingToolError as error:
        found = not_run(arguments.model, on=arguments.on, reason=str(error))
    if arguments.out is not None:
        _write(arguments.out, found)
    return Result(payload=found.as_json(), text=_rendered(found), exit_code=EXIT_CODES[found.outcome])


def _listed(precisions: str | None) -> list[str]:
    return [each.strip() for each in precisions.split(",") if each.strip()] if precisions else []


def _write(path: Path, found: Check) -> None:
    import json

    from edgeface.cli.main import _jsonable
    from edgeface.files import write_bytes

    write_bytes(path, (json.dumps(_jsonable(found.as_json()), indent=2, allow_nan=False) + "\n").encode())


def _faces(shipped: Shipped, source: str, n: int) -> Faces:
    from edgeface.cli.console import progress
    from edgeface.data.sources import data_root
    from targets.devices.shipped import choose_faces

    with progress() as bar:
        task = bar.add_task(f"faces {source}".strip(), total=None, note="")
        return choose_faces(
            shipped,
            source=source,
            n=n,
            root=data_root(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _rendered(found: Check) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table

    colours = {"PASS": "bold green", "FAIL": "bold red", "NOT_RUN": "bold yellow"}
    verdict = Text.assemble((found.outcome, colours[found.outcome]), f" {found.bundle} on {found.on}")
    if not found.rows or found.absent:
        return Group(verdict, Text(found.reason))
    machine = [found.detail, str(found.machine.get("model", ""))]
    how = Text(f"{', '.join(word for word in machine if word)}: {found.source}", "dim")
    columns = ["file", "runtime", "outcome", "equal", "max LSB", "dB", "worst task", "ms"]
    grid = table(columns, [_cells(row) for row in found.rows])
    grid.columns[1].justify = "left"
    tables: list[RenderableType] = [grid] if found.outcome != "NOT_RUN" else []
    if found.main is not None and found.main.tasks:
        tables.append(_scores(found.main, on=found.on))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        if row.reason:
            reasons.setdefault((row.outcome, row.reason), []).append(f"{row.file} on {row.runtime}")
    notes = [
        Text.assemble((f"{outcome} ", colours[outcome]), f"{_named(rows, of=len(found.rows))}: {reason}")
        for (outcome, reason), rows in reasons.items()
    ]
    untimed = {row.latency_reason for row in found.rows if row.latency_reason and row.outcome == "PASS"}
    if found.compared:
        notes.append(Text(f"compared with {'; '.join(found.compared)}", "dim"))
        notes += [Text(reason, "dim") for reason in found.left_out]
    notes += [Text(f"not timed: {reason}", "dim") for reason in sorted(untimed)]
    if found.bit_identical is not None:
        same = "the same to the bit" if found.bit_identical else "NOT the same to the bit"
        notes.append(Text(f"w8a8 answers there and here: {same}"))
    return Group(verdict, how, *tables, *notes)


def _named(rows: list[str], *, of: int) -> str:
    return "all of them" if len(rows) == of > 1 else ", ".join(rows)


def _scores(row: Row, *, on: str) -> RenderableType:
    """Task metrics there beside those here, of the file that stands for the bundle."""
    from edgeface.cli.console import table
    from edgeface.metrics import main_metric
    from edgeface.report.table import shown, title
    from edgeface.tasks import TASKS

    rows = []
    for name, scores in row.tasks.items():
        metric = main_metric(TASKS[name], scores.there)
        here = shown(metric, None if scores.here is None else scores.here.get(metric))
        rows.append([name, title(metric), shown(metric, scores.there.get(metric)), here, str(scores.there["n"])])
    return table(["task", "metric", f"on {on}", "expected", "n"], rows, title=f"{row.file} on {row.runtime}")


def _cells(row: Row) -> list[str]:
    judged = row.judgement
    if judged is None or not judged.outputs:
        return [row.file, row.runtime, row.outcome, *["-"] * 5]
    return [
        row.file,
        row.runtime,
        row.outcome,
        # Floats that differ in their last digit are not equal, and not worth a figure.
        f"{judged.equal:.3%}" if judged.max_lsb is not None or judged.bit_identical else "-",
        "-" if judged.max_lsb is None else f"{judged.max_lsb:.3g}",
        "same" if judged.bit_identical else f"{judged.sqnr_db:.1f}",
        _worst(row),
        "-" if row.latency is None else f"{row.latency['median_ms']:.3f}",
    ]


def _worst(row: Row) -> str:
    """The task that lost most against what is expected here, in the unit of budgets."""
    known = {name: scores.worse_by for name, scores in row.tasks.items() if scores.worse_by is not None}
    if not known:
        return "-"
    name = max(known, key=lambda task: known[task])
    return f"{name} {-known[name]:+.2f}" if known[name] >= 0.005 else "none lost"
