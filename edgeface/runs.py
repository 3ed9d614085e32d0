"""Run folders: `runs/NAME/{teacher,student,qat}`, which one is newest, which can go on, and who is at work in one.

A run is finished when its `qat/` is. `runs/latest` is a relative link to the run that finished last: no clock is asked
which one is newest. A process holds the lock of what it writes into; a lock ends with its process, however that ends,
so neither a killed process nor a restarted machine leaves one behind.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeface import limits
from edgeface.errors import DataError, OutputError, UsageError
from edgeface.files import output_error, read_json, read_limited, settle, try_lock, write_bytes, write_json

RUNS = Path("runs")
RECIPE = "recipe.toml"
FACES = "faces.json"
_VALIDATION = "validation"  # in faces.json, beside the training sources; no source is called so
LOCK = ".lock"
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
        if out.exists() and not is_run(out) and any(path.name != LOCK for path in out.iterdir()):
            raise OutputError(
                "a folder with other files in it",
                expected="an empty or absent folder, or a run",
                where=str(out),
                do="Name another folder with --out",
            )
        if is_run(out) and not resume:
            _refuse_if_held(out)
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
        _refuse_if_held(unfinished[-1])
        raise UsageError(
            "an unfinished run of this recipe",
            expected="none, or --resume",
            where=str(unfinished[-1]),
            do="Add --resume to go on with it, name another folder with --out, or delete it",
        )
    return candidates[-1]


def begin(
    run: Path,
    recipe_text: str,
    *,
    faces: Mapping[str, str] | None = None,
    validation: Mapping[str, str] | None = None,
) -> None:
    """Create a run folder, or make sure that a resumed one has the same resolved recipe and the same faces.

    Args:
        run: The folder.
        recipe_text: Of the resolved recipe.
        faces: Training source to the digest of its pictures and labels; None leaves them to the stages' own digests.
        validation: The same of the validation sources; None leaves them out.

    Raises:
        UsageError: The run began with another recipe, or its own cannot be read.
        DataError: It began with other faces: a corpus has changed since.
        OutputError: It cannot be written.
    """
    path = run / RECIPE
    if path.is_file():
        earlier = _recipe_text(path)
        if earlier != recipe_text:
            changed = [line for line in recipe_text.splitlines() if line not in earlier.splitlines()]
            raise UsageError(
                f"another recipe than the run began with ({'; '.join(changed[:4]) or 'some keys are gone'})",
                expected="the same resolved recipe, threads included",
                where=str(path),
                do="Resume with the same recipe and --set, or name another folder with --out",
            )
    if faces is not None and (run / FACES).is_file():
        require_same_faces(run, faces=faces, validation=validation or {})
    elif faces is not None:
        write_json(run / FACES, {**faces, **({} if validation is None else {_VALIDATION: dict(validation)})})
    if not path.is_file():
        write_bytes(path, recipe_text.encode())


def _recipe_text(path: Path) -> str:
    try:
        return read_limited(path, limit=limits.RECIPE_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be read ({error})",
            expected="the recipe that the run began with",
            where=str(path),
            do="Put it back as it was, or begin another run with --out",
        ) from error


def require_same_faces(run: Path, *, faces: Mapping[str, str], validation: Mapping[str, str]) -> None:
    """Make sure that a run's faces are those it began with.

    Args:
        run: The folder; one that keeps no digests is not judged.
        faces: Training source to the digest of its pictures and labels.
        validation: The same of the validation sources; runs did not always keep theirs.

    Raises:
        DataError: They are others, or what the run keeps of them cannot be read.
    """
    path = run / FACES
    if not path.is_file():
        return
    try:
        earlier = read_json(path)
        if not isinstance(earlier, dict) or not isinstance(earlier.get(_VALIDATION, {}), dict):
            raise ValueError("no table of sources")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read ({error})", expected="what the run began with", where=str(path), do="Delete it"
        ) from error
    began = {"faces": earlier, "validation faces": earlier.get(_VALIDATION, validation)}
    for what, now in (("faces", faces), ("validation faces", validation)):
        changed = [source for source, digest in now.items() if began[what].get(source) != digest]
        if changed:
            raise DataError(
                f"the {what} of {', '.join(map(repr, changed))} have changed since this run began",
                expected="the pictures and labels it began with: all of a run learns from the same faces"
                if what == "faces"
                else "the pictures and labels it began with: all of a run is judged by the same faces",
                where=str(path),
                do="Put them back as they were, or begin another run with --out",
            )


@contextlib.contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Be the only process that writes into a run.

    Raises:
        UsageError: Another one is at work there; the error says which one, and since when.
        OutputError: The folder cannot be written.
    """
    with _hold(run, run / LOCK):
        yield


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """As `hold_run`, of a folder that is written aside and renamed, so that its lock stands beside it."""
    whole = folder.parent.resolve() / folder.name
    with _hold(folder, whole.with_name(f".{whole.name}{LOCK}")):
        yield


@contextlib.contextmanager
def _hold(folder: Path, path: Path) -> Iterator[None]:
    made = not path.parent.is_dir()
    descriptor = _open_lock(path)
    try:
        while True:
            if not try_lock(descriptor):
                raise _held(folder, path)
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # its holder ended, and took the file along, between our opening and our locking it
            descriptor = _open_lock(path)
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "began": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        if _is_at(descriptor, path) and try_lock(descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # where nothing has come of it


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise output_error(error, where=path.parent) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _refuse_if_held(run: Path) -> None:
    """Name who is at work in a run, where somebody is."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        if not try_lock(descriptor):
            raise _held(run, run / LOCK)
    finally:
        os.close(descriptor)


def _held(folder: Path, path: Path) -> UsageError:
    try:
        holder = read_json(path, limit=4096)
        where = "" if holder["host"] == platform.node() else f" on {holder['host']!r}"
        who, kill = f"process {int(holder['pid'])}{where}, begun {holder['began']},", f"kill -INT {int(holder['pid'])}"
    except (OSError, ValueError, KeyError, TypeError):
        who, kill = "another process", "Ctrl-C"  # it has not written down yet who it is
    return UsageError(
        f"{who} is at work there",
        expected="a folder that no other process writes into",
        where=str(folder),
        do=f"Wait for it, stop it with {kill}, or name another folder with --out",
    )


def mark_latest(run: Path) -> None:
    """Point `latest`, beside the run, at it."""
    link = run.parent / _LATEST
    settle(link)
    aside = run.parent / f".{_LATEST}.{os.getpid()}.partial"
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
