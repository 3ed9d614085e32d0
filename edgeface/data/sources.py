"""From the name of a source to a corpus: `CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]`, `folder:PATH[@SPLIT]`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.listing import TRAIN_PARTS, fold_and_part
from edgeface.errors import DataError, UsageError, did_you_mean

ENVIRONMENT = "EDGEFACE_DATA"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source name taken apart.

    Attributes:
        text: As typed.
        corpus: Key of READERS.
        argument: What stands after the colon: a path, or a number of synthetic faces; "" when absent.
        split: What stands after the last "@"; "" when absent.
    """

    text: str
    corpus: str
    argument: str
    split: str


def data_root(root: str = "") -> Path:
    """Folder that holds the corpora: `root`, else $EDGEFACE_DATA, else ./data."""
    return Path(root or os.environ.get(ENVIRONMENT) or "data").expanduser()


def parse_source(source: str) -> Source:
    """Takes a source name apart.

    Raises:
        UsageError: No such corpus, or a part that is empty.
    """
    head, colon, argument = source.partition(":")
    # Only a last part without a separator is a split, so that a path may contain "@".
    rest = argument if colon else head
    body, at, split = rest.rpartition("@")
    if not at or "/" in split or os.sep in split:
        body, at, split = rest, "", ""
    corpus, argument = (head, body) if colon else (body, "")
    forms = "CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT] or folder:PATH[@SPLIT]"
    if corpus not in READERS:
        raise UsageError(
            f"no corpus named {corpus!r}",
            expected=f"one of {', '.join(map(repr, READERS))}",
            where=f"source {source!r}",
            do=did_you_mean(corpus, READERS) or f"Write {forms}",
        )
    if (at and not split) or (colon and not argument):
        raise UsageError("an empty part", expected=forms, where=f"source {source!r}", do="Complete or drop it")
    return Source(text=source, corpus=corpus, argument=argument, split=split)


def open_source(source: str, *, root: Path, strict: bool = False) -> Corpus:
    """Reads the labels of a source; pictures are decoded later.

    Args:
        source: `CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]` or `folder:PATH[@SPLIT]`; without a split,
            training data; of london and afw their only split, of lfw the pairs.
        root: Folder that holds the corpora, from `data_root`.
        strict: Raise at the first bad sample instead of listing it in `skipped`.

    Raises:
        UsageError: The name cannot be understood.
        DataError: The corpus cannot be read.
    """
    parsed = parse_source(source)
    return READERS[parsed.corpus](parsed, root, strict)


def splits_apart(corpus: str, split: str) -> tuple[str, ...]:
    """Names of the other splits that should have no face in common with one; a corpus need not have each of them.

    A reader whose splits have names of their own says so in a table `APART`. A part of the training list lies in it by
    design, and so does every fold's in the other folds'.

    Args:
        corpus: Key of READERS.
        split: The split; "" of a folder is all of it, and its parts are to be apart from each other.
    """
    if corpus == "synthetic" or not (split or corpus == "folder"):
        return ()
    own: dict[str, tuple[str, ...]] | None = getattr(import_module(f"edgeface.data.{corpus}"), "APART", None)
    if own is not None:
        return own.get(split, ())
    fold, part = fold_and_part(split)
    parts = set(TRAIN_PARTS) - {"train"}
    names = (*sorted(parts), "val", "test") if part in parts else ("train", "val", "test")
    return tuple(each for each in (f"fold{fold}-{name}" if fold else name for name in names) if each != split)


def pairs_of(source: str, *, root: Path) -> Path | None:
    """The published list of pairs that identity is verified on with this source; None where there is none."""
    parsed = parse_source(source)
    if parsed.corpus != "lfw" or parsed.split not in ("", "pairs"):
        return None
    from edgeface.data.lfw import pairs_list

    return pairs_list(_folder_of(parsed, root), "pairs")


def _folder_of(source: Source, root: Path) -> Path:
    path = Path(source.argument).expanduser() if source.argument else root / source.corpus
    if not path.is_dir():
        raise DataError(
            f"the folder {str(path)!r} does not exist",
            expected=f"the {source.corpus} corpus in its published layout",
            where=f"source {source.text!r}",
            do=(
                "Correct the path"
                if source.argument
                else f"Set {ENVIRONMENT} to the folder that holds {source.corpus!r}, or type its path: "
                f"{source.corpus}:PATH"
            ),
        )
    return path


def _published(split: str = "train") -> Callable[[Source, Path, bool], Corpus]:
    """Reads a corpus with the module of its name; without a split, `split`."""

    def read(source: Source, root: Path, strict: bool) -> Corpus:
        reader = import_module(f"edgeface.data.{source.corpus}")
        corpus: Corpus = reader.read(
            _folder_of(source, root), source=source.text, split=source.split or split, strict=strict
        )
        return corpus

    return read


def _folder(source: Source, root: Path, strict: bool) -> Corpus:
    from edgeface.data import folder

    if not source.argument:
        raise UsageError(
            "no path", expected="folder:PATH[@SPLIT]", where=f"source {source.text!r}", do="Type the folder's path"
        )
    return folder.read(_folder_of(source, root), source=source.text, split=source.split, strict=strict)


def shards_path(source: Source) -> Path:
    """The folder of shards, or the one shard, that a `webdataset:PATH` names.

    Raises:
        UsageError: It names none.
        DataError: It is not there.
    """
    if not source.argument:
        raise UsageError(
            "no path",
            expected="webdataset:PATH[@SPLIT]",
            where=f"source {source.text!r}",
            do="Type the path of the folder with the shards",
        )
    path = Path(source.argument).expanduser()
    return path if path.is_file() else _folder_of(source, path)


def _webdataset(source: Source, root: Path, strict: bool) -> Corpus:
    from edgeface.data import webdataset

    return webdataset.read(shards_path(source), source=source.text, split=source.split, strict=strict)


def _synthetic(source: Source, root: Path, strict: bool) -> Corpus:
    from edgeface.data.synthetic import read

    return read(source.text)


READERS: dict[str, Callable[[Source, Path, bool], Corpus]] = {
    "mtfl": _published(),
    "fairface": _published(),
    "ferplus": _published(),
    "mebeauty": _published(),
    "london": _published("test"),
    "lsafbd": _published(),
    "scut_fbp5500": _published(),
    "utkface": _published(),
    "fer2013": _published(),
    "rafdb": _published(),
    "celeba": _published(),
    "aflw": _published(),
    "afw": _published("test"),
    "w300": _published(),
    "wflw": _published(),
    "lfw": _published("pairs"),
    "ckplus": _published(),
    "oulu_casia": _published(),
    "folder": _folder,
    "webdataset": _webdataset,
    "synthetic": _synthetic,
}
