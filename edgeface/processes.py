"""Processes that work for another one: they end when it does, and it says what Ctrl-C means; and threads of one."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator


def live_with_parent() -> None:
    """Have this child process end with its parent, even with one that is killed, and leave Ctrl-C to it.

    Without it, a child of a killed process goes on for nobody, or waits for ever for the next thing to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent answers it
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """On Ctrl-C, end the child processes of this one instead of waiting for them."""
    try:
        yield
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


class _SignalStack(ctypes.Structure):
    """stack_t of signal.h."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_NO_SIGNAL_STACK = 2  # SS_DISABLE


def signals_on_own_stack() -> None:
    """Let this thread answer signals on its own stack; nothing on systems other than Linux.

    Python answers them on another stack where a library has set one. OpenVINO's CPU plugin does, and frees it with its
    last model, whatever thread lets go of that: a signal afterwards, Ctrl-C or an ended child, ends the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(flags=_NO_SIGNAL_STACK)), None)


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """NumPy's matrix products on one thread meanwhile.

    For work that is parallel already and whose products are small: OpenBLAS wakes a thread for each core, and they wait
    for one another in a loop. Two processes that pack on two cores took 3 times as long so.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1, user_api="blas")  # type: ignore[no-any-return]
