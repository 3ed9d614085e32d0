"""A Mac as a device: its own Core ML runs the packages, in the process that edgeface runs in."""

from __future__ import annotations

import platform
from pathlib import Path

from edgeface.errors import MissingToolError, UnsupportedError
from targets.devices.device import Told


class Macos:
    """The Mac that edgeface runs on.

    Raises:
        MissingToolError: This is no Mac.
    """

    name = "macos"
    emulated = False

    def __init__(self) -> None:
        if platform.system() != "Darwin":
            raise MissingToolError(
                f"this is {platform.system()}",
                expected="macOS, where Core ML is",
                where="--on macos",
                do="Type the same command on a Mac; here, --on host runs Core ML packages in edgeface's own executor",
            )

    @property
    def detail(self) -> str:
        return f"{platform.machine()}, macOS {platform.mac_ver()[0]}"

    def run(self, job: Path, *, told: Told) -> None:
        """A Mac takes no jobs.

        Raises:
            UnsupportedError: Always; the packages are run by targets.runners, and TFLite files by `--on host`.
        """
        raise UnsupportedError("a job of TFLite files", expected="--on host", where="--on macos")
