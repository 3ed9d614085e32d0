"""Memory that does not suffice: what libraries raise then, made one error that says what to change."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable

from edgeface.errors import MissingToolError, ResourceError

# Words of the system's loader, of C++ and of PyTorch's allocators; each raises a type of its own, or a RuntimeError.
_LOADER = ("cannot allocate memory", "failed to map segment")
_WORDS = (
    *(*_LOADER, "can't allocate memory", "not enough memory", "bad_alloc", "out of memory"),
    *("can't start new thread", "resource temporarily unavailable"),
)


def is_memory(error: BaseException) -> bool:
    """True for an error that says that memory, of this process or of a GPU, has run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    if isinstance(error, SystemError):  # Python's own words where it cannot set aside the exception that it must raise
        return is_limited() and ("without setting an exception" in said or "without exception set" in said)
    if type(error) is MissingToolError:  # a tool-kit that is here, and whose library found no room
        return any(words in said for words in _LOADER)
    # A library that cannot be mapped is an ImportError, or an OSError of ctypes that has no number.
    return isinstance(error, RuntimeError | ImportError | OSError) and any(words in said for words in _WORDS)


def memory_error(error: BaseException) -> ResourceError | None:
    """The error a user sees when memory has run out; None for any other error."""
    if not is_memory(error):
        return None
    said = error.found if isinstance(error, MissingToolError) else str(error)
    return _short(" ".join(said.split())[:160] or type(error).__name__)


def ended_by_native_code(code: int) -> ResourceError:
    """The error of a process under a limit that ended without a word of ours; its code is negative for a signal."""
    how = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return _short(f"native code ended the process, {how}")


def _short(reason: str) -> ResourceError:
    return ResourceError(
        f"out of memory ({reason})",
        expected=f"more than this process may have{_limit_in_words()}",
        do="Raise the limit (ulimit -v), end other programs, or lower train.batch and threads in the recipe",
    )


def limit_error(said: object) -> ResourceError | None:
    """The error a user sees when a library's words about a file speak of memory, and this process may have a part of it
    alone; None otherwise: without a limit it is the file that wants too much.
    """
    words = str(said).lower()
    if not is_limited() or not any(each in words for each in (*_WORDS, "memoryerror")):
        return None
    return _short(" ".join(str(said).split())[-160:])


def is_limited() -> bool:
    """Whether this process may have a part of the machine's memory alone (ulimit -v)."""
    return _limit_bytes() is not None


def _limit_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if allowed == resource.RLIM_INFINITY else allowed


def _limit_in_words() -> str:
    allowed = _limit_bytes()
    return "" if allowed is None else f": its limit is {allowed / 2**20:.0f} MiB of address space"


def largest_that_fits(fits: Callable[[int], bool], count: int) -> tuple[int, list[int]]:
    """Halve a number of samples until they fit.

    Args:
        fits: Whether so many do.
        count: What did not fit.

    Returns:
        The first of count // 2, count // 4, … that fits, 0 when not even one sample does; and those that did not.
    """
    refused = [count]
    while (count := count // 2) > 0:
        if fits(count):
            return count, refused
        refused.append(count)
    return 0, refused
