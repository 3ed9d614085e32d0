"""The errors edgeface raises, and the exit code each one ends the command line with.

    EdgefaceError            4   base; never raised itself
    ├── UsageError           2   a command line that cannot be carried out as typed
    ├── ConfigError          2   a recipe with faults; `faults` lists all of them
    ├── DataError            2   a corpus, image or label file that cannot be used
    ├── ModelError           2   a checkpoint, bundle or model file that cannot be used
    ├── UnsupportedError     2   a request that edgeface or a target refuses, with what it accepts
    ├── OutputError          2   an output folder that is full, read-only, or taken
    ├── ResourceError        2   memory, of this process or of a GPU, that does not suffice
    ├── BudgetError          1   a budget, parity or check that did not hold
    ├── MissingToolError     3   a tool-kit or device that is not here: NOT_RUN
    │   └── DeviceError      3   a device that was there and did not finish its job: NOT_RUN
    └── InterruptedRun       130 stopped by the user at a step boundary; resumable

Every message says what was found, what was expected, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(found: str, options: Iterable[str]) -> str:
    """A hint for a mistyped name, to stand in an error's `do`.

    Returns:
        "Did you mean 'x'?" for the nearest of `options`, or "" when none is near.
    """
    near = difflib.get_close_matches(found, list(options), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def _shown(text: str) -> str:
    """Text that may quote a hostile file, fit for a terminal: what moves the cursor or has no encoding is escaped."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


class EdgefaceError(Exception):
    """Base of every error edgeface raises on purpose.

    Args:
        found: What was met, interpolations quoted with !r.
        expected: What would have been right.
        where: The file, line, recipe key or argument.
        do: The next thing the reader can type or change.
    """

    exit_code = 4

    def __init__(self, found: str, *, expected: str = "", where: str = "", do: str = "") -> None:
        self.found = found
        self.expected = expected
        self.where = where
        self.do = do
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.found}" if self.where else self.found
        parts = [head.rstrip(".")]
        if self.expected:
            parts.append(f"Expected {self.expected}".rstrip("."))
        if self.do:
            parts.append(self.do.rstrip("."))
        return _shown(". ".join(parts) + ("" if parts[-1].endswith("?") else "."))

    def as_json(self) -> dict[str, object]:
        """The `error` object of the command line's JSON contract."""
        return {
            "code": self.exit_code,
            "found": self.found,
            "expected": self.expected,
            "where": self.where,
            "do": self.do,
        }


class UsageError(EdgefaceError):
    exit_code = 2


class ConfigError(EdgefaceError):
    """A recipe with one or more faults.

    Args:
        faults: One EdgefaceError-shaped ConfigError per fault, or empty when this is the fault itself.
    """

    exit_code = 2

    def __init__(
        self,
        found: str,
        *,
        expected: str = "",
        where: str = "",
        do: str = "",
        faults: Sequence[ConfigError] = (),
    ) -> None:
        self.faults = tuple(faults)
        super().__init__(found, expected=expected, where=where, do=do)

    def __str__(self) -> str:
        head = super().__str__()
        if not self.faults:
            return head
        return "\n".join([head, *(f"  {fault}" for fault in self.faults)])

    def as_json(self) -> dict[str, object]:
        """As the base; `found` carries every fault, one a line, so that the object keeps the contract's five keys."""
        plain = super().as_json()
        if self.faults:
            plain["found"] = "\n".join([self.found, *map(str, self.faults)])
        return plain


class DataError(EdgefaceError):
    exit_code = 2


class ModelError(EdgefaceError):
    exit_code = 2


class UnsupportedError(EdgefaceError):
    exit_code = 2


class OutputError(EdgefaceError):
    exit_code = 2


class ResourceError(EdgefaceError):
    exit_code = 2


class BudgetError(EdgefaceError):
    exit_code = 1


class MissingToolError(EdgefaceError):
    exit_code = 3


class DeviceError(MissingToolError):
    """A device that was lost, is full, or whose program ended before its job; in the device's own words."""


class InterruptedRun(EdgefaceError):
    exit_code = 130
