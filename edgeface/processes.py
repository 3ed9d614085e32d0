"""Processes that work for another one: they end when it does, and it says what Ctrl-C means; and threads of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
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


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """NumPy's matrix products on one thread meanwhile.

    For work that is parallel already and whose products are small: OpenBLAS wakes a thread for each core, and they wait
    for one another in a loop. Two processes that pack on two cores took 3 times as long so.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1, user_api="blas")  # type: ignore[no-any-return]
