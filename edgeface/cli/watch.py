"""Under a memory limit (ulimit -v) a command runs in a process of its own: native code that gets no memory ends its
process, by a signal or by `exit`, and somebody must be left to say so in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from edgeface.memory import ended_by_native_code

_NAME = (
    "EDGEFACE_WATCHED"  # of the environment variable that holds both pipes' ends, as the process of its own finds them
)
_ENDED = b"."
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")


def run_apart(words: Sequence[str]) -> int:
    """Run a command line in a process of its own, which ends with this one.

    Args:
        words: What was typed behind `edgeface`.

    Returns:
        Its exit code.

    Raises:
        ResourceError: It ended in native code.
    """
    alive_end, alive = os.pipe()
    told, told_end = os.pipe()
    command = [sys.executable, "-m", "edgeface", *words]
    environment = {**os.environ, _NAME: f"{alive_end},{told_end}"}
    # A group of its own: Ctrl-C reaches it once, from here, and not from the terminal too.
    child = subprocess.Popen(command, env=environment, pass_fds=(alive_end, told_end), process_group=0)
    os.close(alive_end)
    os.close(told_end)

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    before = {name: signal.signal(getattr(signal, name), pass_on) for name in _PASSED_ON}
    try:
        code = child.wait()
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
        os.close(alive)
    os.set_blocking(told, False)
    with contextlib.suppress(BlockingIOError), os.fdopen(told, "rb", buffering=0) as answer:
        if answer.read(1) == _ENDED:
            return code
    if -code in {getattr(signal, name) for name in _PASSED_ON}:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise ended_by_native_code(code)


class Watch:
    """This process's side: whether another one waits for it, and the word that its command came to an end."""

    def __init__(self) -> None:
        ends = os.environ.pop(_NAME, "")
        self._told = -1
        with contextlib.suppress(ValueError, OSError):
            alive, told = map(int, ends.split(","))
            for end in (alive, told):
                os.set_inheritable(end, False)
            with contextlib.suppress(RuntimeError):  # no memory for a thread: then it outlives a killed parent
                threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
            self._told = told

    def __bool__(self) -> bool:
        return self._told >= 0

    def ended(self) -> None:
        """The command has an exit code, whatever happens from here on."""
        if self:
            os.write(self._told, _ENDED)


def _end_with(alive: int) -> None:
    os.read(alive, 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(1)
