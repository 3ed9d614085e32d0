"""Tool-kits that talk on stdout and stderr, some of it from C++, kept quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """Send both streams and all warnings aside while a tool-kit works.

    Yields:
        What gives the text written so far.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:

        def written() -> str:
            log.flush()
            return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace").strip()

        try:
            kept = [os.dup(1), os.dup(2)]
        except OSError:  # a closed stdout or stderr: there is nobody to disturb
            yield written
            return
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            # Python's own streams may not be the descriptors 1 and 2: someone may have replaced them.
            with (
                open(log.fileno(), "w", buffering=1, closefd=False, errors="replace") as text,
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(text),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield written
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
