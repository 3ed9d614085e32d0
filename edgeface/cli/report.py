"""`edgeface report`: one self-contained report.html of a run and what was built from it, of a bundle, or of a sweep."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface import limits
from edgeface.cli.result import Result
from edgeface.errors import ModelError, UsageError
from edgeface.files import read_limited

if TYPE_CHECKING:
    from edgeface.data.pack import Pack
    from edgeface.evaluate import Runner
    from edgeface.report.entries import Entry
    from edgeface.report.html import Report, Speed
    from edgeface.report.scorecard import Scorecard
    from edgeface.report.swept import Swept
    from edgeface.specs import BudgetSpec

REPORT = "report.html"
SCORECARD = "scorecard.json"
_BUNDLES = Path("out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, a bundle with its scorecard.json, or the folder of a sweep"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        metavar="DIR",
        help="files built from the run; default: every bundle in out/ that names one of its checkpoints",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="SOURCE",
        help="faces to measure on; default: the recipe's validation and test faces",
    )
    parser.add_argument(
        "--faces",
        metavar="SOURCE",
        help="pictures to show with the answers of the file that ships: synthetic:N or folder:DIR; default: the first "
        "faces of the data where they are synthetic",
    )
    parser.add_argument("--no-bench", action="store_true", help="leave out how fast the models are here")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also write every chart as PNG")
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="DEVICE",
        help="also measure the .tflite files there: arm64, ssh:USER@HOST or adb[:SERIAL], as for edgeface check",
    )
    parser.add_argument(
        "--sweep",
        type=Path,
        metavar="DIR",
        help="also the Pareto plot of this sweep; default: of the sweep that the run is a trial of",
    )
    parser.add_argument("--cpu", metavar="C", help="processor that arm64 imitates: a53, a72, a76 or n1")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: RUN/{REPORT}")


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.files import write_bytes
    from edgeface.report.plots import write_pngs
    from edgeface.report.swept import SWEPT, TRIALS
    from edgeface.runs import is_run

    folder: Path = arguments.run
    out: Path = arguments.out or folder / REPORT
    swept = None
    if (folder / SWEPT).is_file() or (folder / TRIALS).is_dir():
        _refuse_options(arguments, of="a sweep", do="Name one of its trials, or drop these options")
        report, swept = _of_sweep(folder)
        cards: list[Scorecard] = []
    elif is_run(folder):
        swept, own = sweep_of(folder, arguments.sweep)
        report, cards = _of_run(
            folder,
            bundles=arguments.bundle,
            sources=arguments.data,
            faces=arguments.faces,
            timed=not arguments.no_bench,
            devices=[(on, arguments.cpu) for on in arguments.on],
            sweep=swept,
            own=own,
        )
    elif (folder / SCORECARD).is_file():
        _refuse_options(arguments, of="a bundle", do="Name the run the bundle was built from, or drop these options")
        report, cards = _of_bundle(folder)
    else:
        raise ModelError(
            "neither a run, nor a bundle with a scorecard, nor a sweep" if folder.exists() else "no such folder",
            expected="a run folder that `edgeface distill` wrote, a bundle that `edgeface build` scored, or the folder "
            "of an `edgeface sweep`",
            where=str(folder),
            do="Name a run, such as runs/demo",
        )
    write_bytes(out, report.html.encode())
    pictures = [] if arguments.plots is None else write_pngs(report.plots, arguments.plots)
    return Result(
        payload={
            "schema": 1,
            "report": str(out),
            "plots": [str(path) for path in pictures],
            "scorecards": [card.as_json() for card in cards],
            **({} if swept is None else {"sweep": swept.as_json()}),
        },
        text=f"report: {out}" + (f"\nplots: {len(pictures)} in {arguments.plots}" if pictures else ""),
        exit_code=exit_code(cards),
    )


def _refuse_options(arguments: argparse.Namespace, *, of: str, do: str) -> None:
    """Refuses what says how a run is measured."""
    options = ("bundle", "data", "faces", "on", "sweep")
    if any(getattr(arguments, name) for name in options):
        named = ", ".join(f"--{name}" for name in options[:-1])
        raise UsageError(f"{named} or --{options[-1]} with {of}", expected="a run", where=str(arguments.run), do=do)


def sweep_of(run: Path, named: Path | None = None) -> tuple[Swept | None, list[str]]:
    """A sweep to show in a run's report, and the places in it of the files that are the run's.

    Args:
        run: A run folder.
        named: Folder of a sweep; None takes that of which the run is a trial, if it is one.

    Raises:
        ModelError: The sweep named has no figures, or they are damaged.
    """
    from edgeface.report.swept import SWEPT, TRIALS, read_swept

    trials = run.resolve().parent
    folder = trials.parent if named is None else named
    if named is None and not (trials.name == TRIALS and (folder / SWEPT).is_file()):
        return None, []
    swept = read_swept(folder)
    inside = run.resolve() if folder.resolve() == trials.parent else None
    places = [each.file for each in swept.done]
    return swept, [
        place for place in places if inside is not None and (folder / place).resolve().is_relative_to(inside)
    ]


def _of_sweep(folder: Path) -> tuple[Report, Swept]:
    from edgeface.report.html import sweep_page
    from edgeface.report.swept import SWEPT, read_swept

    swept = read_swept(folder)
    try:
        return sweep_page(swept), swept
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # As of a bundle: all that the page shows was read from a file.
        raise ModelError(
            f"it cannot be drawn ({type(error).__name__}: {error})",
            expected=f"a {SWEPT} as edgeface sweep wrote it",
            where=str(folder / SWEPT),
            do="Type the edgeface sweep command of this folder again, which writes it anew",
        ) from error


def exit_code(cards: Sequence[Scorecard]) -> int:
    """1 when a budget is broken, else 3 when something could not be run, else 0."""
    codes = {card.exit_code for card in cards}
    return next((code for code in (1, 3) if code in codes), 0)


def of_bundle(folder: Path) -> tuple[str, list[Scorecard]]:
    """The page of a bundle from the scorecard.json in it, without measuring again."""
    report, cards = _of_bundle(folder)
    return report.html, cards


def _of_bundle(folder: Path) -> tuple[Report, list[Scorecard]]:
    from edgeface.report.gather import origins
    from edgeface.report.html import page
    from edgeface.report.scorecard import read_scorecard

    card = read_scorecard(folder / SCORECARD)
    speed = "A bundle is not timed here: edgeface bench times its files, edgeface report does so for a whole run."
    told = origins(None, [folder])
    try:
        report = page(name=folder.resolve().name, cards=[card], speed=speed, origins=told)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # All that the page shows was read from a file, and a figure of another kind is met where it is drawn.
        raise ModelError(
            f"it cannot be drawn ({type(error).__name__}: {error})",
            expected="a scorecard.json as edgeface wrote it",
            where=str(folder / SCORECARD),
            do="Measure it again",
        ) from error
    return report, [card]


def _of_run(
    folder: Path,
    *,
    bundles: Sequence[Path] | None,
    sources: Sequence[str] | None,
    faces: str | None,
    timed: bool,
    devices: Sequence[tuple[str, str | None]],
    sweep: Swept | None,
    own: Sequence[str],
) -> tuple[Report, list[Scorecard]]:
    from edgeface.cli.console import note
    from edgeface.config import load_recipe
    from edgeface.data.sources import data_root
    from edgeface.report.entries import device_entries, runtime_entries, stage_entries
    from edgeface.report.gather import check_examples, examples, measure_speed, origins, run_layer_errors
    from edgeface.report.html import SYNTHETIC, page, shipped
    from edgeface.runs import RECIPE

    recipe = load_recipe(str(folder / RECIPE))
    wanted = list(dict.fromkeys(sources or (*recipe.data.val, *recipe.data.test)))
    if not wanted:
        raise UsageError("no faces to measure on", expected="--data SOURCE", where=str(folder / RECIPE))
    if faces is not None:
        check_examples(faces)
    entries = stage_entries(folder)
    bundles = bundles_of(folder) if bundles is None else bundles
    for bundle in bundles:
        entries += runtime_entries(bundle)
        for on, cpu in devices:
            entries += device_entries(bundle, on, cpu=cpu)
    # A budget is never set on test faces: only the recipe's validation faces decide.
    cards = [
        score(entries, source, root=recipe.data.root, budget=recipe.budget if source in recipe.data.val else {})
        for source in wanted
    ]
    speed: Speed | str = "Not timed: --no-bench."
    if timed:
        note("timing the models …")
        speed = measure_speed(cards[-1], run=folder, bundles=bundles)
    root = data_root(recipe.data.root)
    layers = run_layer_errors(folder, wanted[-1], root=root)
    ship = shipped(cards[-1])
    shown = None
    if faces is None and wanted[-1].partition(":")[0] == SYNTHETIC:
        faces = wanted[-1]
    if faces is not None and ship is not None:
        entry = next(entry for entry in entries if entry.name == ship.model)
        shown = examples(entry.open, faces, model=ship.model, root=root)
    report = page(
        name=recipe.name,
        summary=recipe.summary,
        cards=cards,
        curves={
            stage: _text(folder / stage / "curve.csv", limit=limits.CURVE_BYTES)
            for stage in ("teacher", "student", "qat")
            if (folder / stage / "curve.csv").is_file()
        },
        speed=speed,
        layers=layers,
        examples=shown,
        origins=origins(folder, bundles),
        recipe=_text(folder / RECIPE, limit=limits.RECIPE_BYTES),
        sweep=sweep,
        own=own,
    )
    return report, cards


def score(
    entries: Sequence[Entry],
    source: str,
    *,
    root: str = "",
    budget: Mapping[str, BudgetSpec] | None = None,
) -> Scorecard:
    """Measure models on a source, with progress on stderr.

    Args:
        entries: In the order of a model's life.
        source: `CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]` or `folder:PATH[@SPLIT]`.
        root: Folder that holds the corpora; "" takes the default.
        budget: Task name to the allowed worsening of files.
    """
    from edgeface.cli.console import progress
    from edgeface.report.measure import measure

    packs: dict[int, Pack] = {}

    def crops(runner: Runner) -> Pack:
        px = runner.spec.input_px
        if px not in packs:  # reading a source again costs more than scoring a student on it
            packs[px] = crops_of(runner, source, root=root)
        return packs[px]

    with progress() as bar:
        tasks = {}

        def told(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"{name} on {source}", total=total, note="")
            bar.update(tasks[name], completed=done)

        return measure(entries, crops, budget=budget, progress=told)


def bundles_of(run: Path, *, out: Path = _BUNDLES) -> list[Path]:
    """Bundles in `out` whose manifest names a checkpoint of the run."""
    from edgeface.checkpoint import load_checkpoint

    digests = [load_checkpoint(run / stage).sha256 for stage in ("student", "qat") if (run / stage).is_dir()]
    manifests = sorted(out.glob("*/manifest.json"))
    texts = {path.parent: _text(path, limit=limits.MANIFEST_BYTES) for path in manifests}
    return [bundle for bundle, text in texts.items() if any(digest in text for digest in digests)]


def _text(path: Path, *, limit: int) -> str:
    """A text file of a run or bundle.

    Raises:
        ModelError: It cannot be read, or is larger than `limit` bytes.
    """
    try:
        return read_limited(path, limit=limit).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot be read ({error})", expected="a file as edgeface wrote it", where=str(path), do="Restore it"
        ) from error


def crops_of(runner: Runner, source: str, *, root: str) -> Pack:
    from edgeface.data.sources import data_root
    from edgeface.evaluate import evaluation_pack

    return evaluation_pack(source, runner.spec, root=data_root(root))
