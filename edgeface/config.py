"""Recipes: the specs of specs.py written in TOML, read strictly.

A recipe is data. It is read once into frozen dataclasses; an unknown key, a wrong type, a value out of range and a
missing key are all reported together, each with its dotted path. Nothing is inherited: copy a recipe out and edit it,
or change single values with `--set a.b=value`, where the value is TOML (a bare word stands for a string).

A spec with an ALONE key may be written as that key's value: `budget.pose = 1.5` is `budget.pose = {points = 1.5}`.

A table that is left out, or part of one, takes the values of its default; so `[qat.train]` with only `batch` keeps
QAT's own epochs and learning rate.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgeface import limits
from edgeface.errors import ConfigError, did_you_mean
from edgeface.files import read_limited
from edgeface.specs import DataSpec, NetworkSpec, Recipe
from edgeface.tasks import TASKS

Spec = TypeVar("Spec")

RECIPES = Path(__file__).resolve().parent / "recipes"

# Stand-ins for required keys that are missing or faulty, used only to run a spec's range checks on its other keys, so
# that those faults are reported in the same breath. The result is thrown away.
_STAND_INS: dict[tuple[type, str], Any] = {
    (Recipe, "name"): "unnamed",
    (Recipe, "data"): DataSpec(train=("synthetic:1",)),
    (Recipe, "tasks"): dict.fromkeys(TASKS, 1.0),
    (NetworkSpec, "backbone"): "edge_s",
}


class _Faulty:
    """Stands for a value whose fault has been noted."""


_FAULTY = _Faulty()
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class PackagedRecipe:
    """A recipe that ships with edgeface.

    Attributes:
        name: What to give to `edgeface distill`.
        source: Its file.
        summary: Its own one-line summary.
        group: The comparison it is a row of; "" for recipes that stand alone.
    """

    name: str
    source: str
    summary: str
    group: str = ""


def load_recipe(name_or_path: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a packaged one, or by the path of a TOML file.

    Args:
        name_or_path: A path when it ends in ".toml" or holds a path separator, else a packaged recipe's name.
        overrides: `a.b=value` strings, applied in order before anything is checked.

    Raises:
        ConfigError: With every fault of the file and of the overrides in `faults`.
    """
    path = _recipe_path(name_or_path)
    table = _read_toml(path)
    from_set = _apply_overrides(table, overrides)
    return _load(Recipe, table, document=str(path), from_set=from_set)


def list_recipes() -> tuple[PackagedRecipe, ...]:
    """The recipes that ship with edgeface, by name: first those that stand alone, then group by group."""
    found = []
    for path in _packaged_paths():
        recipe = load_recipe(str(path))
        group = "" if path.parent == RECIPES else path.parent.name
        found.append(PackagedRecipe(name=path.stem, source=str(path), summary=recipe.summary, group=group))
    return tuple(found)


def _packaged_paths() -> list[Path]:
    return [*sorted(RECIPES.glob("*.toml")), *sorted(RECIPES.glob("*/*.toml"))]


def dump_recipe(recipe: Recipe) -> str:
    """TOML with every key of a recipe written out; reading it back gives an equal recipe."""
    return _toml_table(to_plain(recipe), path=()).lstrip("\n")


def to_plain(value: Any) -> Any:
    """A spec as JSON-able values: dataclasses and mappings become dicts, tuples become lists.

    Raises:
        TypeError: For a value that is neither a spec nor one of the types specs are made of.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        alone = getattr(value, "ALONE", "")
        if alone and value == type(value)(**{alone: plain[alone]}):
            return to_plain(plain[alone])
        # Keys that a spec did not always have: while nobody chose them, digests and texts of runs stay what they were.
        unsaid = {key for key in getattr(value, "LATER", ()) if plain[key] == getattr(type(value), key)}
        return {name: to_plain(item) for name, item in plain.items() if name not in unsaid}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not a value of a spec")


def from_plain(cls: type[Spec], mapping: Mapping[str, object], *, where: str) -> Spec:
    """A spec from what `to_plain` gave, as read back from TOML or JSON.

    Args:
        cls: A dataclass of specs.py.
        mapping: Its keys and plain values.
        where: The document, for the error.

    Raises:
        ConfigError: With every fault in `faults`, each with its dotted path.
    """
    return _load(cls, mapping, document=where, from_set=())


def _load(cls: type[Spec], mapping: Mapping[str, object], *, document: str, from_set: Sequence[str]) -> Spec:
    faults: list[ConfigError] = []
    spec = _read_spec(cls, mapping, base=None, path="", faults=faults)
    if faults or isinstance(spec, _Faulty):
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(
            count,
            where=document,
            do="Correct each of these",
            faults=[_name_set(fault, from_set) for fault in faults],
        )
    assert isinstance(spec, cls)  # for the type checker: _read_spec builds a cls
    return spec


def _name_set(fault: ConfigError, from_set: Sequence[str]) -> ConfigError:
    """Says that the faulty value came from --set, where it did."""
    if not any(_within(fault.where, key) or _within(key, fault.where) for key in from_set):
        return fault
    return ConfigError(fault.found, expected=fault.expected, where=f"--set {fault.where}", do=fault.do)


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))


def _recipe_path(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return Path(name_or_path)
    paths = {path.stem: path for path in _packaged_paths()}
    if name_or_path not in paths:
        names = list(paths)
        raise ConfigError(
            f"{name_or_path!r} is not a packaged recipe",
            expected="the name of one that `edgeface recipes` lists, or the path of a .toml file",
            where="RECIPE",
            do=did_you_mean(name_or_path, names) or "See them with `edgeface recipes`",
        )
    return paths[name_or_path]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = read_limited(path, limit=limits.RECIPE_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "there is no such file",
            expected="a recipe in TOML",
            where=str(path),
            do=f"Copy one to edit with `edgeface recipes --copy demo {path}`",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"byte {error.start} is not UTF-8", expected="a recipe in TOML, which is UTF-8", where=str(path)
        ) from None
    except OSError as error:
        raise ConfigError(
            error.strerror or type(error).__name__, expected="a readable recipe file", where=str(path)
        ) from None
    except ValueError as error:
        raise ConfigError(str(error), expected="a recipe in TOML", where=str(path)) from None
    try:
        return parse_toml(text)
    except ValueError as error:
        reason, line = _toml_fault(error)
        raise ConfigError(
            reason,
            expected="TOML",
            where=f"{path}:{line}" if line else str(path),
            do="Correct that line; strings need quotes and a key may stand only once",
        ) from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text from anyone.

    Raises:
        ValueError: It is no TOML, nested too deep, or has a whole number of thousands of digits or a key of hundreds of
            parts, for which tomllib takes time by the square.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if line.count(".") > limits.TOML_DOTS:
            raise ValueError(
                f"{line.count('.'):,} dots, at most {limits.TOML_DOTS} are read (at line {number}, column 1)"
            )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _toml_fault(error: ValueError) -> tuple[str, int]:
    """What tomllib found, and on which line (0 when it was the end of the document)."""
    message = str(error)
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if at is None:
        return message, 0
    return message[: at.start()], int(at.group(1) or 0)


def _apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Write `a.b=value` strings into a parsed recipe; returns the dotted paths that were written.

    Raises:
        ConfigError: With every override that cannot be applied in `faults`.
    """
    faults: list[ConfigError] = []
    written: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            faults.append(
                ConfigError(
                    f"{override!r}", expected="a.b=value", where="--set", do="Such as --set student.train.lr=3e-4"
                )
            )
            continue
        inner = table
        for depth, part in enumerate(parts[:-1]):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                dotted = ".".join(parts[: depth + 1])
                faults.append(
                    ConfigError(f"{override!r}", expected=f"{dotted} to be a table; it is a value", where="--set")
                )
                break
        else:
            try:
                inner[parts[-1]] = _override_value(text)
            except ValueError as error:
                faults.append(
                    ConfigError(
                        f"{text!r}: {_toml_fault(error)[0]}",
                        expected="a TOML value",
                        where=f"--set {key}",
                        do="Quote it for the shell, such as --set 'data.train=[\"mtfl@train\"]'",
                    )
                )
            written.append(".".join(parts))
    if faults:
        raise ConfigError(
            "1 fault" if len(faults) == 1 else f"{len(faults)} faults",
            where="--set",
            do="Correct each of these",
            faults=faults,
        )
    return tuple(written)


def _override_value(text: str) -> Any:
    """A TOML value, or the text itself when it is a bare word such as bf16 or synthetic:100@train."""
    try:
        parsed = tomllib.loads(f"value = {text}\n")
    except tomllib.TOMLDecodeError:
        if text.strip()[:1] in ("", "[", "{", '"', "'"):
            raise
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text


def _read_spec(cls: type[Any], value: object, *, base: Any, path: str, faults: list[ConfigError]) -> Any:
    """A dataclass from a table; notes faults and returns _FAULTY when there are any.

    Args:
        base: The instance whose values stand in for keys that the table leaves out; None takes the class's defaults.
        path: Dotted path of the table, "" at the top.
    """
    if not isinstance(value, Mapping):
        faults.append(_wrong_type(value, "a table", path))
        return _FAULTY
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = _hints(typing.cast(Any, cls))
    before = len(faults)
    for key in value:
        if key not in fields:
            hint = did_you_mean(str(key), fields)
            faults.append(
                ConfigError(
                    "unknown key",
                    expected=f"one of {', '.join(map(repr, fields))}",
                    where=_join(path, str(key)),
                    do=hint or "Remove it",
                )
            )
    values: dict[str, Any] = {}
    checkable = True
    for name, field in fields.items():
        default = _default(field, base)
        if name not in value:
            if default is _ABSENT:
                faults.append(
                    ConfigError(
                        "missing", expected=_describe(hints[name]), where=_join(path, name), do="Write this key"
                    )
                )
                read: Any = _FAULTY
            else:
                read = default
        else:
            inner_base = default if dataclasses.is_dataclass(default) else None
            read = _read_value(hints[name], value[name], base=inner_base, path=_join(path, name), faults=faults)
        if isinstance(read, _Faulty):
            read = default if default is not _ABSENT else _STAND_INS.get((cls, name), _ABSENT)
            checkable = checkable and read is not _ABSENT
        values[name] = read
    spec: Any = _FAULTY
    if checkable:
        try:
            spec = cls(**values)
        except ConfigError as error:
            known = {fault.where for fault in faults[before:]}
            for fault in error.faults or (error,):
                where = _join(path, fault.where)
                if where not in known:  # a stand-in must not add to a fault already noted
                    faults.append(ConfigError(fault.found, expected=fault.expected, where=where, do=fault.do))
    return spec if len(faults) == before else _FAULTY


@functools.cache  # resolving annotations takes longer than reading a spec
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _ABSENT


def _read_value(hint: Any, value: object, *, base: Any, path: str, faults: list[ConfigError]) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        alone = getattr(hint, "ALONE", "")
        if alone and not isinstance(value, Mapping):
            inner = _hints(typing.cast(Any, hint))[alone]
            read = _read_value(inner, value, base=None, path=path, faults=faults)
            return read if isinstance(read, _Faulty) else hint(**{alone: read})
        return _read_spec(hint, value, base=base, path=path, faults=faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _read_tuple(hint, arguments, value, path=path, faults=faults)
    if origin is Mapping or origin is dict:
        if not isinstance(value, Mapping):
            faults.append(_wrong_type(value, _describe(hint), path))
            return _FAULTY
        items = {
            str(key): _read_value(arguments[1], item, base=None, path=_join(path, str(key)), faults=faults)
            for key, item in value.items()
        }
        return _FAULTY if any(isinstance(item, _Faulty) for item in items.values()) else items
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # TOML's limit; Python would not print more
        faults.append(
            ConfigError("a number of more than 64 bits", expected=_describe(hint), where=path, do="Change it")
        )
        return _FAULTY
    # bool is a subclass of int: true is never taken for 1
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        faults.append(ConfigError(f"{value!r}"[:40], expected="a finite number", where=path, do="Change it"))
        return _FAULTY
    if hint in (int, bool, str) and type(value) is hint:
        return value
    if hint not in (int, float, bool, str):
        raise TypeError(f"{path}: specs are not made of {hint!r}")
    faults.append(_wrong_type(value, _describe(hint), path))
    return _FAULTY


def _read_tuple(
    hint: Any, arguments: tuple[Any, ...], value: object, *, path: str, faults: list[ConfigError]
) -> tuple[Any, ...] | _Faulty:
    if not isinstance(value, list | tuple):
        faults.append(_wrong_type(value, _describe(hint), path))
        return _FAULTY
    if arguments[-1] is Ellipsis:
        hints = [arguments[0]] * len(value)
    elif len(value) == len(arguments):
        hints = list(arguments)
    else:
        faults.append(ConfigError(f"{len(value)} values", expected=_describe(hint), where=path, do="Change the list"))
        return _FAULTY
    items = tuple(
        _read_value(inner, item, base=None, path=f"{path}[{place}]", faults=faults)
        for place, (inner, item) in enumerate(zip(hints, value, strict=True))
    )
    return _FAULTY if any(isinstance(item, _Faulty) for item in items) else items


def _wrong_type(value: object, expected: str, path: str) -> ConfigError:
    if isinstance(value, bool):
        found = str(value).lower()
    else:
        found = repr(value) if isinstance(value, int | float | str) else _describe(type(value))
    do = "Change its type"
    if isinstance(value, str) and expected.startswith("a list"):
        do = f"Put it in brackets: [{_toml_string(value)}]"
    elif isinstance(value, str):
        do = "Write it without quotes"
    elif expected == "a string":
        do = "Put it in quotes"
    return ConfigError(found, expected=expected, where=path, do=do)


_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "string", dict: "table", list: "list"}


def _describe(hint: Any) -> str:
    """A type in a recipe writer's words, with its article."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) or origin is Mapping or origin is dict:
        return "a table"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {_plural(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} {_plural(arguments[0])}"
    if hint is bool:
        return _NAMES[bool]
    name = _NAMES.get(hint) or getattr(hint, "__name__", str(hint))
    return f"a {name}"


def _plural(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "tables"
    if typing.get_origin(hint) is tuple or hint is bool:
        return "lists" if hint is not bool else "true or false"
    return f"{_NAMES[hint]}s"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _toml_table(table: Mapping[str, Any], *, path: tuple[str, ...]) -> str:
    """A table with its own values first and its inner tables after, each under its full header."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = []
    if path and (values or not inner):
        lines.append(f"\n[{'.'.join(map(_toml_key, path))}]")
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items()]
    text = "".join(f"{line}\n" for line in lines)
    return text + "".join(_toml_table(value, path=(*path, key)) for key, value in inner.items())


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)  # of a float: the shortest text that reads back to the same bits


def _toml_string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML wants DEL escaped too
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
