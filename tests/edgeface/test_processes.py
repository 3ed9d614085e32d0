"""What edgeface asks of its own process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# What OpenVINO's CPU plugin leaves behind: a signal stack that is no memory any more.
LEFT_BEHIND = """
import ctypes, mmap, signal
from edgeface.processes import _SignalStack, signals_on_own_stack
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
place = libc.mmap(None, 65536, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
assert libc.sigaltstack(ctypes.byref(_SignalStack(start=place, size=65536)), None) == 0
assert libc.munmap(place, 65536) == 0
signal.signal(signal.SIGUSR1, lambda *_: print("answered"))
"""
ASK = "signal.raise_signal(signal.SIGUSR1)\n"


def answer(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is looked after on Linux alone")
def test_a_signal_is_answered_where_a_library_left_no_stack_for_it() -> None:
    """Found in a test run: Ctrl-C ended a training with SIGSEGV after a model of OpenVINO's had been let go."""
    found = answer(f"{LEFT_BEHIND}signals_on_own_stack()\n{ASK}")
    assert (found.returncode, found.stdout) == (0, "answered\n"), found.stderr
    twin = answer(LEFT_BEHIND + ASK)
    assert (twin.returncode, twin.stdout) == (-signal.SIGSEGV, "")
