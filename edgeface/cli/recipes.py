"""`edgeface recipes`: list the packaged recipes, or copy one out to edit."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeface.cli.result import Result
from edgeface.config import PackagedRecipe, list_recipes
from edgeface.errors import OutputError, UsageError, did_you_mean
from edgeface.files import write_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copy",
        nargs=2,
        metavar=("NAME", "PATH"),
        help="write a packaged recipe to PATH (a file, or a folder that exists)",
    )


def run(arguments: argparse.Namespace) -> Result:
    packaged = list_recipes()
    if arguments.copy:
        return _copy(*arguments.copy, packaged=packaged)
    lines = []
    for group in dict.fromkeys(recipe.group for recipe in packaged):
        own = [recipe for recipe in packaged if recipe.group == group]
        width = max(len(recipe.name) for recipe in own)
        lines += [f"\nGroup {group}:"] if group else []
        lines += [f"{recipe.name:<{width}}  {recipe.summary}" for recipe in own]
    lines.append(
        f"\nRun one with `edgeface distill {packaged[0].name}`, or edit a copy: `edgeface recipes --copy NAME PATH`."
    )
    return Result(payload=_payload(packaged), text="\n".join(lines))


def _copy(name: str, path: str, *, packaged: tuple[PackagedRecipe, ...]) -> Result:
    by_name = {recipe.name: recipe for recipe in packaged}
    if name not in by_name:
        raise UsageError(
            f"{name!r} is not a packaged recipe",
            expected=f"one of {', '.join(map(repr, by_name))}",
            where="--copy NAME",
            do=did_you_mean(name, by_name) or "See them with `edgeface recipes`",
        )
    target = Path(path)
    if target.is_dir():
        target = target / f"{name}.toml"
    if target.suffix != ".toml":
        raise UsageError(
            f"{path!r}", expected="a path that ends in .toml, or a folder that exists", where="--copy PATH"
        )
    if target.exists():
        raise OutputError(
            "the file is there already", expected="a new file", where=str(target), do="Choose another path or remove it"
        )
    source = Path(by_name[name].source)
    write_bytes(target, source.read_bytes())
    return Result(
        payload={**_payload((by_name[name],)), "copied": str(target)},
        text=f"Wrote {target}. Give it a name of its own in the `name` key, then: edgeface distill {target}",
    )


def _payload(recipes: tuple[PackagedRecipe, ...]) -> dict[str, object]:
    return {
        "schema": 1,
        "recipes": [{"name": recipe.name, "source": recipe.source, "summary": recipe.summary} for recipe in recipes],
    }
