"""`edgeface data inspect|pack SOURCE [OUT]` and `edgeface data clear`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType
    from rich.table import Table

_SOURCE = "CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT], folder:PATH[@SPLIT] or webdataset:PATH[@SPLIT]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="inspect|pack|clear", required=True)
    inspect = actions.add_parser("inspect", help="count samples, labels, sizes, duplicates and faults")
    inspect.add_argument("source", metavar="SOURCE", help=_SOURCE)
    inspect.add_argument("out", metavar="OUT", nargs="?", type=Path, help="also write the JSON object to this file")
    inspect.add_argument("--all", action="store_true", help="name every picture of each finding, not the first ones")
    pack = actions.add_parser("pack", help="cut every face once and keep the crops in the cache")
    pack.add_argument("source", metavar="SOURCE", help=_SOURCE)
    pack.add_argument("out", metavar="OUT", nargs="?", type=Path, help="also copy the pack to this folder")
    pack.add_argument("--px", type=int, default=96, help="side of the crops in pixels (default %(default)s)")
    pack.add_argument(
        "--margin", type=float, default=1.3, help="side of the crops over the nominal crop (default %(default)s)"
    )
    pack.add_argument(
        "--shards", metavar="DIR", type=Path, help="write tar shards for streaming into this folder, not to the cache"
    )
    pack.add_argument(
        "--shard-size", metavar="N", type=int, default=4096, help="samples of a shard (default %(default)s)"
    )
    pack.add_argument("--n", metavar="N", type=int, default=0, help="take the first N samples only")
    pack.add_argument(
        "--image",
        choices=("png", "jpg", "ppm"),
        default="png",
        help="pictures in shards: png and ppm keep every pixel, ppm is not compressed (default %(default)s)",
    )
    pack.add_argument("--workers", metavar="N", type=int, default=0, help="packing processes; 0 takes a core each")
    for action in (inspect, pack):
        action.add_argument(
            "--root", default="", help="folder that holds the corpora; else $EDGEFACE_DATA, else ./data"
        )
        action.add_argument("--strict", action="store_true", help="stop at the first bad sample")
    actions.add_parser("clear", help="delete all packed crops, and what models answered on them, from the cache")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.action == "clear":
        return _clear()
    return _inspect(arguments) if arguments.action == "inspect" else _pack(arguments)


def _inspect(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import progress
    from edgeface.data.inspect import LISTED, inspect
    from edgeface.data.sources import data_root
    from edgeface.files import write_json

    with progress() as bar:
        task = bar.add_task("reading", total=None, note="")
        found = inspect(
            arguments.source,
            root=data_root(arguments.root),
            strict=arguments.strict,
            most=None if arguments.all else LISTED,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if arguments.out is not None:
        write_json(arguments.out, found)
    return Result(payload=found, text=_inspected(found, most=None if arguments.all else _SHOWN))


def _inspected(found: Mapping[str, Any], *, most: int | None) -> RenderableType:
    """What was found in words; of each finding the first `most` pictures in its line, or with None each in its own."""
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table

    lines = [f"{found['source']}: {_people(found)}. Licence: {found['licence']}.", f"Pictures: {_sizes(found)}."]
    if found["research_only"]:
        lines.append("Research only: weights trained on it may not be shipped.")
    also = "also in" if found["split"] else "in both"  # without a split, a folder's are compared with each other
    if found["compared"]:
        counts = ", ".join(f"@{other} ({count} faces)" for other, count in found["compared"].items())
        lines.append(f"Compared with {counts}." if found["split"] else f"Splits: {counts}.")
    if found["named"] and found["shared_people"]:
        counts = ", ".join(f"{_at(other)}: {count}" for other, count in found["shared_people"].items())
        lines.append(f"People who are {also} {counts}.")
    findings = [
        *((f"left out, {reason}", listed) for reason, listed in found["skipped"].items()),
        ("unreadable picture", found["unreadable"]),
        *((f"used as labelled, {reason}", listed) for reason, listed in found["doubtful"].items()),
        ("picture that repeats an earlier one", found["duplicates"]),
        ("repeated picture whose labels differ from the earlier one's", found["disagreeing"]),
        *((f"picture that is {also} {_at(other)}", there) for other, there in found["shared_pictures"].items()),
    ]
    cut = False
    for reason, listed in findings:
        if not listed["count"]:
            continue
        keys = listed["keys"][:most]
        if most is None:
            lines += [f"{listed['count']} × {reason}:", *(f"    {key}" for key in keys)]
            continue
        rest = len(keys) < listed["count"]
        lines.append(f"{listed['count']} × {reason}: {', '.join(keys)}{', …' if rest else ''}")
        cut = cut or rest
    clean = [words for words, key in _SOUND.items() if not found[key]["count"]]
    clean += [f"is {also} {_at(other)}" for other, there in found["shared_pictures"].items() if not there["count"]]
    if clean:
        lines.append(f"None {', none '.join(clean)}.")
    if cut:
        lines.append("With --all every one of them is named.")
    rows = [[name, str(task["labelled"]), _details(task)] for name, task in found["tasks"].items()]
    parts: list[RenderableType] = [Text("\n".join(lines)), _words(table(["task", "labelled", "what"], rows))]
    if found["groups"]:
        groups = [[name, _shares(counts)] for name, counts in found["groups"].items()]
        parts.append(_words(table(["group", "who"], groups)))
    return Group(*parts)


_SHOWN = 3  # pictures named in the line of a finding
_SIZES = 6


def _sizes(found: Mapping[str, Any]) -> str:
    sizes = list(found["sizes"].items())
    words = [f"{count} of {size}" for size, count in sizes[:_SIZES]]
    if rest := sizes[_SIZES:]:
        words.append(f"{sum(count for _, count in rest)} of {len(rest)} other sizes")
    return ", ".join(words) or "none that can be read"


def _at(splits: str) -> str:
    """ "train and test" as "@train and @test"."""
    return " and ".join(f"@{split}" for split in splits.split(" and "))


# What is said of pictures in which nothing was found, so that silence need not be read as "was not looked at".
_SOUND = {"is unreadable": "unreadable", "repeats another": "duplicates"}


def _people(found: Mapping[str, Any]) -> str:
    samples, named = found["samples"], found["named"]
    if not named:
        return f"{samples} faces, whose people are not named (one may stand in two splits)"
    if named < samples:
        return f"{samples} faces, {named} of them with the person's name"
    return f"{samples} faces of {found['people']} people"


def _words(grid: Table) -> Table:
    """The same table with its last column, which holds words, set left."""
    grid.columns[-1].justify = "left"
    return grid


def _shares(counts: Mapping[str, int]) -> str:
    whole = sum(counts.values())
    return ", ".join(f"{name or 'unknown'} {100 * count / whole:.1f} %" for name, count in counts.items())


def _details(task: Mapping[str, Any]) -> str:
    if "classes" in task:
        # Levels have numbers for names, which beside a share read as another number.
        named = {f"level {name}" if name.isdecimal() else name: share for name, share in task["classes"].items()}
        absent = [name for name, share in named.items() if not share]
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in named.items() if share)
        return shares + (f"; no {', '.join(absent)}" if absent else "")
    if "attributes" in task:
        return ", ".join(f"{name} {part['positive']}/{part['labelled']}" for name, part in task["attributes"].items())
    if "mirrored_eyes" in task:
        return f"{task['mirrored_eyes']} with mirrored eyes, {task['outside_crop']} with a point outside the crop"
    if "identities" in task:
        return f"{task['identities']} people"
    if "bins" in task:
        exact = {"exact years": task["exact"]} if task["exact"] else {}
        return _shares({**task["bins"], **exact})
    if "range" in task:
        low, high = task["range"]
        text = f"{low:.4g} to {high:.4g}" + (f", mean {task['mean']:.4g}" if "mean" in task else "")
        if "scale" in task:
            least, most = task["scale"]
            raw = [least + value * (most - least) for value in (low, high)]
            text += f" ({raw[0]:.3g} to {raw[1]:.3g} on the corpus's scale of {least:g} to {most:g})"
        return text
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
    if arguments.shards is not None:
        return _pack_shards(arguments)
    for name, plain in (("shard_size", 4096), ("n", 0), ("image", "png"), ("workers", 0)):
        if getattr(arguments, name) != plain:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} alone", expected="--shards DIR with it", where="edgeface data pack", do="Add it"
            )
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


def _pack_shards(arguments: argparse.Namespace) -> Result:
    import os

    from edgeface.cli.console import progress
    from edgeface.data.shard_writer import Plan, pack_shards
    from edgeface.data.shards import index_file
    from edgeface.data.sources import data_root
    from edgeface.errors import UsageError

    if arguments.out is not None:
        raise UsageError("OUT and --shards", expected="one of them", where="edgeface data pack", do="Drop one")
    plan = Plan(
        source=arguments.source,
        root=data_root(arguments.root),
        px=arguments.px,
        margin=arguments.margin,
        shard_size=arguments.shard_size,
        count=arguments.n,
        encoding=arguments.image,
        strict=arguments.strict,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with progress() as bar:
        task = bar.add_task("packing", total=None, note="")
        shards = pack_shards(
            plan,
            arguments.shards,
            workers=arguments.workers or cores,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    size = sum(shard.size_bytes for shard in shards.shards)
    at = f"@{shards.split}" if shards.split else ""
    payload = {
        "schema": 1,
        "source": arguments.source,
        "folder": str(arguments.shards),
        "read_as": f"webdataset:{arguments.shards}{at}",
        "index": str(index_file(arguments.shards, shards.split)),
        "samples": len(shards),
        "shards": len(shards.shards),
        "bytes": size,
        "px": shards.px,
        "margin": shards.margin,
        "skipped": {reason: {"count": count, "keys": list(keys)} for reason, (count, keys) in shards.skipped.items()},
        "licence": shards.licence,
        "research_only": shards.research_only,
        "content_hash": shards.content_hash,
    }
    lines = [
        f"{len(shards)} faces of {arguments.source} at {shards.px} px, margin {shards.margin:g}: "
        f"{len(shards.shards)} shards, {size / 1e6:.1f} MB",
        f"Read them as webdataset:{arguments.shards}{at}",
    ]
    for reason, (count, keys) in shards.skipped.items():
        lines.append(f"{count} × {reason}: {', '.join(keys[:5])}{', …' if count > 5 else ''}")
    return Result(payload=payload, text="\n".join(lines))


def _clear() -> Result:
    from edgeface.data.pack import cache_folder, clear_cache

    folder = cache_folder()
    freed = clear_cache()
    return Result(
        payload={"schema": 1, "folder": str(folder), "freed_bytes": freed},
        text=f"Freed {freed / 1e6:.1f} MB of packed faces and answers in {folder}",
    )
