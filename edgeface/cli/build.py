"""`edgeface build`: from a checkpoint to the files an app ships, scored on the recipe's validation faces."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result
from edgeface.errors import DataError, MissingToolError, UnsupportedError
from edgeface.precision import PRECISIONS, TARGETS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeface.report.scorecard import Scorecard

REPORT = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a run or a checkpoint; default: the newest run"
    )
    parser.add_argument(
        "--target", required=True, choices=(*TARGETS, "all"), metavar="T", help=f"{', '.join(TARGETS)} or all"
    )
    parser.add_argument(
        "--precision",
        action="append",
        metavar="P",
        help="of the files, may be repeated; default: all that the target takes",
    )
    parser.add_argument("--release", action="store_true", help="refuse weights that learnt from research-only faces")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), metavar="DIR", help="bundles go to DIR/TARGET; default: out"
    )


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.runs import newest_run

    checkpoint = newest_run() if arguments.checkpoint is None else arguments.checkpoint
    if arguments.release:
        _refuse_research_only(checkpoint, precisions=arguments.precision or PRECISIONS["android"])
    targets = TARGETS if arguments.target == "all" else (arguments.target,)
    built: list[_Built] = []
    missing: dict[str, str] = {}
    for target in targets:
        try:
            built.append(_build(checkpoint, target, precisions=_accepted(arguments, target), out=arguments.out))
        except MissingToolError as error:
            if len(targets) == 1:
                raise
            missing[target] = str(error)
    return _result(checkpoint, built, missing)


class _Built:
    """A bundle with the seconds each step took and its scorecards."""

    def __init__(self, folder: Path, *, seconds: Mapping[str, float], cards: Sequence[Scorecard]) -> None:
        from targets.bundle import read_bundle

        self.folder = folder
        self.manifest = read_bundle(folder)
        self.seconds = dict(seconds)
        self.cards = list(cards)


def _accepted(arguments: argparse.Namespace, target: str) -> list[str] | None:
    """The precisions to build; of several targets each takes those it knows."""
    if arguments.precision is None or arguments.target != "all":
        precisions: list[str] | None = arguments.precision
        return precisions
    return [precision for precision in arguments.precision if precision in PRECISIONS[target]] or arguments.precision


def _build(checkpoint: Path, target: str, *, precisions: Sequence[str] | None, out: Path) -> _Built:
    from edgeface.cli.console import note
    from targets.build import build

    seconds: dict[str, float] = {}

    def told(step: str, took: float) -> None:
        seconds[step] = took
        note(f"{target}: {step} {took:.1f} s")

    folder = build(checkpoint, target=target, precisions=precisions, out=out, report=told)
    return _Built(folder, seconds=seconds, cards=_score(checkpoint, folder))


def _score(checkpoint: Path, bundle: Path) -> list[Scorecard]:
    """Scorecards on the recipe's validation faces, one per source; the first is kept in the bundle."""
    from edgeface.cli.console import note
    from edgeface.cli.report import of_bundle, score
    from edgeface.config import load_recipe
    from edgeface.files import write_bytes, write_json
    from edgeface.report.scorecard import bundle_entries, stage_entries
    from edgeface.runs import RECIPE, is_run
    from targets.bundle import SCORECARD, write_model_card

    folder = checkpoint if is_run(checkpoint) else checkpoint.resolve().parent
    if not is_run(folder):
        note("not scored: the checkpoint lies in no run, so its validation faces are not known")
        return []
    recipe = load_recipe(str(folder / RECIPE))
    entries = [*stage_entries(folder), *bundle_entries(bundle)]
    try:
        cards = [score(entries, source, root=recipe.data.root, budget=recipe.budget) for source in recipe.data.val]
    except DataError as error:
        note(f"not scored: {error}")
        return []
    if cards:
        write_json(bundle / SCORECARD, _finite(cards[0].as_json()))
        write_model_card(bundle)
        text, _ = of_bundle(bundle)
        write_bytes(bundle / REPORT, text.encode())
    return cards


def _finite(value: Any) -> Any:
    """JSON has no infinity: such numbers become null."""
    import math

    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_research_only(checkpoint: Path, *, precisions: Sequence[str]) -> None:
    from targets.build import find_sources

    source = find_sources(checkpoint, precisions).named
    made = source.manifest["provenance"]
    if made["research_only"]:
        raise UnsupportedError(
            f"weights that learnt from faces for research only ({'; '.join(made['licences'])})",
            expected="corpora whose terms allow products",
            where=f"--release of {source.folder}",
            do="Train on other faces, or build without --release",
        )


def _result(checkpoint: Path, built: Sequence[_Built], missing: Mapping[str, str]) -> Result:
    from rich.console import Group

    from edgeface.cli.report import exit_code

    codes = [exit_code(bundle.cards) for bundle in built]
    # A broken budget says more than a tool-kit that is not here.
    code = 1 if 1 in codes else 3 if missing or 3 in codes else 0
    payload = {
        "schema": 1,
        "checkpoint": str(checkpoint),
        "bundles": [
            {
                "folder": str(bundle.folder),
                "target": bundle.manifest["target"],
                "files": bundle.manifest["files"],
                "seconds": {step: round(took, 3) for step, took in bundle.seconds.items()},
                "scorecards": [card.as_json() for card in bundle.cards],
            }
            for bundle in built
        ],
        "not_run": dict(missing),
        "pass": code == 0,
    }
    parts: list[RenderableType] = [part for bundle in built for part in _rendered(bundle)]
    parts += [f"{target}: NOT_RUN, {reason}" for target, reason in missing.items()]
    if built:
        parts.append(f"next: edgeface bench {built[0].folder} --precision fp32,w8a8")
    return Result(payload=payload, text=Group(*parts), exit_code=code)


def _rendered(bundle: _Built) -> list[RenderableType]:
    from edgeface.cli.console import table
    from edgeface.report.scorecard import render

    order = PRECISIONS[bundle.manifest["target"]]
    files = sorted(bundle.manifest["files"].items(), key=lambda file: order.index(file[1]["precision"]))
    rows = [[name, entry["precision"], f"{entry['size_bytes']:,}"] for name, entry in files]
    title = f"{bundle.folder}: every file agrees with its student on {bundle.manifest['golden']['faces']} golden faces"
    parts: list[RenderableType] = [table(["file", "precision", "bytes"], rows, title=title)]
    return parts + [render(card) for card in bundle.cards]
