"""`edgeface data inspect|pack SOURCE [OUT]` and `edgeface data clear`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

_SOURCE = "CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT] or folder:PATH[@SPLIT]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="inspect|pack|clear", required=True)
    inspect = actions.add_parser("inspect", help="count samples, labels, sizes, duplicates and faults")
    inspect.add_argument("source", metavar="SOURCE", help=_SOURCE)
    inspect.add_argument("out", metavar="OUT", nargs="?", type=Path, help="also write the JSON object to this file")
    pack = actions.add_parser("pack", help="cut every face once and keep the crops in the cache")
    pack.add_argument("source", metavar="SOURCE", help=_SOURCE)
    pack.add_argument("out", metavar="OUT", nargs="?", type=Path, help="also copy the pack to this folder")
    pack.add_argument("--px", type=int, default=96, help="side of the crops in pixels (default %(default)s)")
    pack.add_argument(
        "--margin", type=float, default=1.3, help="side of the crops over the nominal crop (default %(default)s)"
    )
    for action in (inspect, pack):
        action.add_argument(
            "--root", default="", help="folder that holds the corpora; else $EDGEFACE_DATA, else ./data"
        )
        action.add_argument("--strict", action="store_true", help="stop at the first bad sample")
    actions.add_parser("clear", help="delete all packed crops from the cache")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.action == "clear":
        return _clear()
    return _inspect(arguments) if arguments.action == "inspect" else _pack(arguments)


def _inspect(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import progress
    from edgeface.data.inspect import inspect
    from edgeface.data.sources import data_root
    from edgeface.files import write_json

    with progress() as bar:
        task = bar.add_task("reading", total=None, note="")
        found = inspect(
            arguments.source,
            root=data_root(arguments.root),
            strict=arguments.strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if arguments.out is not None:
        write_json(arguments.out, found)
    return Result(payload=found, text=_inspected(found))


def _inspected(found: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table

    lines = [
        f"{found['source']}: {found['samples']} faces of {found['people']} people. Licence: {found['licence']}.",
        "Pictures: " + ", ".join(f"{count} of {size}" for size, count in list(found["sizes"].items())[:6]) + ".",
    ]
    if found["research_only"]:
        lines.append("Research only: weights trained on it may not be shipped.")
    for other, count in found["shared_people"].items():
        lines.append(f"People also in @{other}: {count}.")
    findings = [*found["skipped"].items()]
    findings += [("unreadable picture", found["unreadable"]), ("duplicate picture", found["duplicates"])]
    for reason, listed in findings:
        if listed["count"]:
            shown = ", ".join(listed["keys"][:5]) + (", …" if listed["count"] > 5 else "")
            lines.append(f"{listed['count']} × {reason}: {shown}")
    rows = [[name, str(task["labelled"]), _details(task)] for name, task in found["tasks"].items()]
    return Group(Text("\n".join(lines)), table(["task", "labelled", "what"], rows))


def _details(task: Mapping[str, Any]) -> str:
    if "classes" in task:
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in task["classes"].items())
    if "attributes" in task:
        return ", ".join(f"{name} {part['positive']}/{part['labelled']}" for name, part in task["attributes"].items())
    if "mirrored_eyes" in task:
        return f"{task['mirrored_eyes']} with mirrored eyes, {task['outside_crop']} with a point outside the crop"
    if "identities" in task:
        return f"{task['identities']} people"
    if "range" in task:
        low, high = task["range"]
        return f"{low:.4g} to {high:.4g}"
    return ""


def _pack(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import progress
    from edgeface.data.inspect import listed
    from edgeface.data.pack import copy_pack, pack
    from edgeface.data.sources import data_root, open_source
    from edgeface.errors import UsageError

    if not 8 <= arguments.px <= 1024:
        raise UsageError(f"--px {arguments.px}", expected="8 to 1024 pixels", where="edgeface data pack")
    if not 0.2 <= arguments.margin <= 3.0:
        raise UsageError(f"--margin {arguments.margin:g}", expected="0.2 to 3", where="edgeface data pack")
    corpus = open_source(arguments.source, root=data_root(arguments.root), strict=arguments.strict)
    with progress() as bar:
        task = bar.add_task("packing", total=len(corpus), note="")
        packed = pack(
            corpus,
            px=arguments.px,
            margin=arguments.margin,
            strict=arguments.strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    folder = packed.folder if arguments.out is None else copy_pack(packed, arguments.out)
    payload = {
        "schema": 1,
        "source": arguments.source,
        "folder": str(folder),
        "samples": len(packed),
        "px": packed.px,
        "margin": packed.margin,
        "skipped": {reason: listed(keys) for reason, keys in packed.skipped.items()},
        "licence": packed.licence,
        "research_only": packed.research_only,
        "content_hash": packed.content_hash,
    }
    lines = [f"{len(packed)} faces of {arguments.source} at {packed.px} px, margin {packed.margin:g}: {folder}"]
    for reason, keys in packed.skipped.items():
        shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
        lines.append(f"{len(keys)} × {reason}: {shown}")
    return Result(payload=payload, text="\n".join(lines))


def _clear() -> Result:
    from edgeface.data.pack import cache_folder, clear_cache

    folder = cache_folder() / "packs"
    freed = clear_cache()
    return Result(
        payload={"schema": 1, "folder": str(folder), "freed_bytes": freed},
        text=f"Freed {freed / 1e6:.1f} MB of packed faces in {folder}",
    )
