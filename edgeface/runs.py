"""Run folders: `runs/NAME/{teacher,student,qat}`, which one is newest, and which can go on.

A run is finished when its `qat/` is. `runs/latest` is a relative link to the run that finished last.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeface.errors import OutputError, UsageError
from edgeface.files import write_bytes

RUNS = Path("runs")
RECIPE = "recipe.toml"
_LATEST = "latest"


def is_finished(run: Path) -> bool:
    """True when the run's last stage is there."""
    return (run / "qat" / "manifest.json").is_file()


def is_run(folder: Path) -> bool:
    """True for a folder that `edgeface distill` began."""
    return (folder / RECIPE).is_file() and not (folder / "manifest.json").is_file()


def choose_run(name: str, *, out: Path | None, resume: bool, runs: Path = RUNS) -> Path:
    """The folder a command writes to.

    Args:
        name: The recipe's name.
        out: The folder the user named, or None for `runs/NAME`.
        resume: Go on with a run that was stopped; one that was never begun starts.
        runs: Folder of all runs.

    Raises:
        UsageError: An unfinished run is in the way, or a finished one was named.
    """
    if out is not None:
        if out.exists() and not is_run(out) and any(out.iterdir()):
            raise OutputError(
                "a folder with other files in it",
                expected="an empty or absent folder, or a run",
                where=str(out),
                do="Name another folder with --out",
            )
        if is_run(out) and not resume:
            state = "finished" if is_finished(out) else "unfinished"
            raise UsageError(
                f"an {state} run" if state == "unfinished" else "a finished run",
                expected="a folder without one",
                where=str(out),
                do="Add --resume to go on with it, or name another folder with --out",
            )
        return out
    candidates = [runs / name]
    while is_run(candidates[-1]):
        candidates.append(runs / f"{name}-{len(candidates) + 1}")
    begun = candidates[:-1]
    unfinished = [run for run in begun if not is_finished(run)]
    if resume:
        return unfinished[-1] if unfinished else (begun[-1] if begun else candidates[-1])
    if unfinished:
        raise UsageError(
            "an unfinished run of this recipe",
            expected="none, or --resume",
            where=str(unfinished[-1]),
            do="Add --resume to go on with it, name another folder with --out, or delete it",
        )
    return candidates[-1]


def begin(run: Path, recipe_text: str) -> None:
    """Create a run folder, or make sure that a resumed one has the same resolved recipe.

    Raises:
        UsageError: The run began with another recipe.
        OutputError: It cannot be written.
    """
    path = run / RECIPE
    if path.is_file():
        earlier = path.read_text(encoding="utf-8")
        if earlier != recipe_text:
            changed = [line for line in recipe_text.splitlines() if line not in earlier.splitlines()]
            raise UsageError(
                f"another recipe than the run began with ({'; '.join(changed[:4]) or 'some keys are gone'})",
                expected="the same resolved recipe, threads included",
                where=str(path),
                do="Resume with the same recipe and --set, or name another folder with --out",
            )
        return
    write_bytes(path, recipe_text.encode())


def mark_latest(run: Path) -> None:
    """Point `latest`, beside the run, at it."""
    link = run.parent / _LATEST
    aside = run.parent / f".{_LATEST}.{os.getpid()}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(run.name)
    aside.replace(link)


def newest_run(runs: Path = RUNS) -> Path:
    """The run that finished last.

    Raises:
        UsageError: There is none.
    """
    link = runs / _LATEST
    if link.is_dir() and is_finished(link):
        return runs / os.readlink(link)
    raise UsageError(
        "no finished run",
        expected="a run folder, or a checkpoint named on the command line",
        where=str(runs),
        do="Type `edgeface distill` first, or name a checkpoint",
    )


def share_teacher(run: Path, key: str) -> bool:
    """As `share_stage`, of the teacher."""
    return share_stage(run, "teacher", key)


def share_stage(run: Path, stage: str, key: str) -> bool:
    """Link what a neighbouring run has already made from the same recipe part and data.

    Args:
        run: The run that needs it and has none.
        stage: Its folder in a run: "teacher" or "forest".
        key: Digest of everything it depends on.

    Returns:
        True when one was found and linked.
    """
    from edgeface.files import read_json

    place = run / stage
    if place.exists() or place.is_symlink():
        return False
    for manifest in sorted(run.parent.glob(f"*/{stage}/manifest.json")):
        if manifest.parent.is_symlink() or manifest.parent.parent.is_symlink():
            continue
        try:
            found = read_json(manifest).get("key")
        except (OSError, ValueError, AttributeError):
            continue
        if found == key:
            place.symlink_to(os.path.relpath(manifest.parent, run))
            return True
    return False
