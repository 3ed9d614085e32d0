"""`edgeface build`: from a checkpoint to the files an app ships, scored on the recipe's validation faces."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.cli.result import Result
from edgeface.errors import ConfigError, DataError, MissingToolError, ModelError, UnsupportedError, UsageError
from edgeface.memory import is_limited
from edgeface.precision import IOS, IOS_VERSIONS, PRECISIONS, TARGETS, of_target
from edgeface.processes import live_with_parent
from edgeface.runs import is_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeface.report.scorecard import Scorecard
    from quantize.search import Found, Tried

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
    parser.add_argument(
        "--auto",
        action="store_true",
        help="search the cheapest mix of precisions that keeps every task inside its budget, on validation faces",
    )
    parser.add_argument(
        "--ios", type=int, choices=IOS_VERSIONS, default=IOS, metavar="N", help=f"least iOS version; default: {IOS}"
    )
    parser.add_argument(
        "--float-input",
        action="store_true",
        help="files that take standardized float values instead of the uint8 picture",
    )
    parser.add_argument("--release", action="store_true", help="refuse weights that learnt from research-only faces")
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign each bundle with this ed25519 key (PEM): writes manifest.sig"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), metavar="DIR", help="bundles go to DIR/TARGET; default: out"
    )


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import note
    from edgeface.runs import hold_folder, newest_run

    if arguments.auto and arguments.precision is not None:
        raise UsageError(
            "--auto and --precision", expected="one of them: --auto chooses the precision", where="edgeface build"
        )
    if arguments.sign is not None:
        from targets.signing import private_key

        private_key(arguments.sign)  # before minutes of building
    checkpoint = newest_run() if arguments.checkpoint is None else arguments.checkpoint
    targets = TARGETS if arguments.target == "all" else (arguments.target,)
    wanted = {target: _accepted(arguments, target) for target in targets}
    wanted = {target: precisions for target, precisions in wanted.items() if precisions != []}
    if not wanted:
        raise UsageError(
            f"precisions {', '.join(map(repr, arguments.precision))}",
            expected="one that some target takes: "
            + "; ".join(f"{target} {', '.join(taken)}" for target, taken in PRECISIONS.items()),
            where="--precision",
        )
    if arguments.release:
        first, precisions = next(iter(wanted.items()))
        _refuse_research_only(checkpoint, precisions=precisions or of_target(first, ios=arguments.ios))
    options: dict[str, Any] = {"ios": arguments.ios, "float_input": arguments.float_input}
    found = _search(checkpoint) if arguments.auto else None
    if found is not None:
        wanted = {target: [_precision_of(found, target, ios=arguments.ios)] for target in wanted}
        options["floats"] = found.floats
    seconds: dict[str, dict[str, float]] = {target: {} for target in wanted}

    def told(target: str, step: str, took: float) -> None:
        seconds[target][step] = took
        note(f"{target}: {step} {took:.1f} s")

    with contextlib.ExitStack() as held:
        for target in wanted:
            held.enter_context(hold_folder(arguments.out / target))
        missing, folders = _build(checkpoint, wanted, arguments.out, options, told=told)
        built = [
            _Built(folder, seconds=seconds[target], cards=_score(checkpoint, folder))
            for target, folder in folders.items()
        ]
        for folder in folders.values():
            _seal(folder, key=arguments.sign)
    return _result(checkpoint, built, missing, found)


def _build(
    checkpoint: Path,
    wanted: Mapping[str, Sequence[str] | None],
    out: Path,
    options: Mapping[str, Any],
    *,
    told: Callable[[str, str, float], None],
) -> tuple[dict[str, str], dict[str, Path]]:
    """Targets that have no tool-kit here, with the reason, and the bundles of the others."""
    from targets.build import build, build_many

    missing: dict[str, str] = {}
    folders: dict[str, Path] = {}
    with _answering_ahead(checkpoint):
        # Converters end the whole process when memory runs out: under a limit, a process of its own, whose end is told.
        if len(wanted) == 1 and not is_limited():
            (target, precisions), *_ = wanted.items()
            folders[target] = build(
                checkpoint,
                target=target,
                precisions=precisions,
                out=out,
                report=lambda step, took: told(target, step, took),
                **options,
            )
        else:
            for target, made in build_many(checkpoint, wanted, out=out, report=told, **options).items():
                if isinstance(made, MissingToolError):
                    missing[target] = str(made)
                else:
                    folders[target] = made
    return missing, folders


def _seal(folder: Path, *, key: Path | None) -> None:
    """Have the manifest name what scoring added, and sign it where a key was given."""
    from targets.signing import private_key, seal

    seal(folder, key=None if key is None else private_key(key))


def _search(checkpoint: Path) -> Found:
    """The cheapest mix of precisions inside the recipe's budgets, on the first of its validation sources."""
    from distill.stages import load_network
    from edgeface.checkpoint import load_checkpoint
    from edgeface.cli.console import note
    from edgeface.config import load_recipe
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluation_pack
    from edgeface.runs import RECIPE
    from quantize.graph import GraphNetwork, trace
    from quantize.qat import load_qat
    from quantize.search import search
    from quantize.sensitivity import Faces
    from targets.build import find_sources

    folder = _run_of(checkpoint)
    if not is_run(folder):
        raise ModelError(
            "a checkpoint that lies in no run",
            expected="a run, whose recipe names budgets and validation faces",
            where=str(checkpoint),
            do="Name the run, or choose with --precision",
        )
    recipe = load_recipe(str(folder / RECIPE))
    if not recipe.budget or not recipe.data.val:
        raise ConfigError(
            "no budget" if not recipe.budget else "no validation faces",
            expected="[budget] with a task and data.val with a source",
            where=str(folder / RECIPE),
            do="Name the largest worsening each task may show, or choose with --precision",
        )
    sources = find_sources(folder, ["w8a8", "fp32"])
    assert sources.student is not None
    assert sources.qat is not None
    model = sources.qat.model
    pack = evaluation_pack(recipe.data.val[0], model, root=data_root(recipe.data.root))
    budget = {task: allowed for task, allowed in recipe.budget.items() if task in pack.labels}
    graph = trace(load_network(sources.student).eval())
    score = Faces(pack, model)
    reference = None
    if any(allowed.vs == "teacher" for allowed in budget.values()):
        teacher = load_checkpoint(folder / "teacher")
        crops = evaluation_pack(recipe.data.val[0], teacher.model, root=data_root(recipe.data.root))
        taught = Faces(crops, teacher.model).score(load_network(teacher))
        reference = score.score(GraphNetwork(graph))
        reference |= {task: taught[task] for task in budget if budget[task].vs == "teacher" and task in taught}
    return search(
        load_qat(sources.qat).quantized(),
        graph,
        budget={task: allowed.points for task, allowed in budget.items()},
        score=score,
        reference=reference,
        report=lambda tried: note(f"tried {_mix(tried)}: {_verdict(tried)}"),
    )


def _mix(tried: Tried) -> str:
    layers = f", {len(tried.floats)} layers in float: {', '.join(sorted(tried.floats))}" if tried.floats else ""
    return f"{tried.precision}{layers}"


def _verdict(tried: Tried) -> str:
    changes = ", ".join(f"{task} {change:+.2f}" for task, change in tried.change.items())
    return f"{changes}; {'inside every budget' if not tried.broken else 'breaks ' + ', '.join(tried.broken)}"


def _precision_of(found: Found, target: str, *, ios: int) -> str:
    """The precision found, or the next finer one that a target takes."""
    ladder = ("w8a8", "fp16", "fp32")
    taken = of_target(target, ios=ios)
    for precision in ladder[ladder.index(found.precision) :]:
        if precision in taken:
            return precision
    raise UnsupportedError(
        f"only {found.precision} keeps every budget",
        expected=f"one of {', '.join(map(repr, taken))}, which {target} takes",
        where="build --auto",
        do="Raise the budget, train the student longer, or build for another target",
    )


class _Built:
    """A bundle with the seconds each step took and its scorecards."""

    def __init__(self, folder: Path, *, seconds: Mapping[str, float], cards: Sequence[Scorecard]) -> None:
        from targets.bundle import read_bundle

        self.folder = folder
        self.manifest = read_bundle(folder)
        self.seconds = dict(seconds)
        self.cards = list(cards)


def _accepted(arguments: argparse.Namespace, target: str) -> list[str] | None:
    """The precisions to build, None for all; of several targets each takes those it knows, which may be none."""
    if arguments.precision is None or arguments.target != "all":
        precisions: list[str] | None = arguments.precision
        return precisions
    return [precision for precision in arguments.precision if precision in of_target(target, ios=arguments.ios)]


@contextlib.contextmanager
def _answering_ahead(checkpoint: Path) -> Iterator[None]:
    """Teacher and students answer the validation faces in a process of their own, while the files are written."""
    folder = _run_of(checkpoint)
    if not is_run(folder):
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_answer_stages, args=(folder,), daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.kill()


def _answer_stages(run: Path) -> None:
    live_with_parent()
    from edgeface.cli.report import crops_of
    from edgeface.config import load_recipe
    from edgeface.report.entries import stage_entries
    from edgeface.report.measure import answer_ahead
    from edgeface.runs import RECIPE

    # Whatever fails here fails again, and is told, when the scorecard is made.
    with contextlib.suppress(Exception):
        recipe = load_recipe(str(run / RECIPE))
        for source in recipe.data.val:
            crops = partial(crops_of, source=source, root=recipe.data.root)
            answer_ahead(stage_entries(run), crops)


def _run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint lies in, or would."""
    return checkpoint if is_run(checkpoint) else checkpoint.resolve().parent


def _score(checkpoint: Path, bundle: Path) -> list[Scorecard]:
    """Scorecards on the recipe's validation faces, one per source; the first is kept in the bundle."""
    from edgeface.cli.console import note
    from edgeface.cli.report import of_bundle, score
    from edgeface.config import load_recipe
    from edgeface.files import write_bytes, write_json
    from edgeface.report.entries import bundle_entries, stage_entries
    from edgeface.runs import RECIPE
    from targets.bundle import SCORECARD, write_model_card

    folder = _run_of(checkpoint)
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


def _result(
    checkpoint: Path, built: Sequence[_Built], missing: Mapping[str, str], found: Found | None = None
) -> Result:
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
        **({} if found is None else {"auto": _auto_json(found)}),
        "pass": code == 0,
    }
    parts: list[RenderableType] = [] if found is None else [_tried_table(found)]
    parts += [part for bundle in built for part in _rendered(bundle)]
    parts += [f"{target}: NOT_RUN, {reason}" for target, reason in missing.items()]
    if built:
        held = [entry["precision"] for entry in built[0].manifest["files"].values()]
        pair = ",".join(p for p in (*PRECISIONS[built[0].manifest["target"]][:1], "w8a8") if p in held) or held[0]
        parts.append(f"next: edgeface bench {built[0].folder} --precision {pair}")
    return Result(payload=payload, text=Group(*parts), exit_code=code)


def _auto_json(found: Found) -> dict[str, Any]:
    return {
        "precision": found.precision,
        "float_layers": sorted(found.floats),
        "sensitivity": {}
        if found.sensitivity is None
        else {row.layer: dict(row.harm) for row in found.sensitivity.rows},
        "tried": [
            {
                "precision": tried.precision,
                "float_layers": sorted(tried.floats),
                "cost": tried.cost,
                "size_bytes": tried.size_bytes,
                "change": dict(tried.change),
                "broken": list(tried.broken),
            }
            for tried in found.tried
        ],
    }


def _tried_table(found: Found) -> RenderableType:
    from edgeface.cli.console import table

    rows = [[_mix(tried), f"{tried.cost / 1e6:.2f}", f"{tried.size_bytes:,}", _verdict(tried)] for tried in found.tried]
    columns = ["tried", "cost, int8 MMAC", "bytes of weights", "worse than fp32 by"]
    return table(columns, rows, title="the cheapest mix of precisions inside every budget")


def _rendered(bundle: _Built) -> list[RenderableType]:
    from edgeface.cli.console import table
    from edgeface.report.table import render

    order = PRECISIONS[bundle.manifest["target"]]
    files = sorted(bundle.manifest["files"].items(), key=lambda file: order.index(file[1]["precision"]))
    rows = [[name, entry["precision"], f"{entry['size_bytes']:,}"] for name, entry in files]
    title = f"{bundle.folder}: every file agrees with its student on {bundle.manifest['golden']['faces']} golden faces"
    parts: list[RenderableType] = [table(["file", "precision", "bytes"], rows, title=title)]
    return parts + [render(card) for card in bundle.cards]
