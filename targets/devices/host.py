"""This machine as a device: the agent in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from edgeface.errors import DeviceError
from targets.devices.device import AGENT, Told

LIMIT_S = 1800.0


class Host:
    """The machine and the Python that edgeface itself runs on."""

    name = "host"
    emulated = False

    @property
    def detail(self) -> str:
        return f"{platform.machine()}, {platform.system()} {platform.release()}"

    def run(self, job: Path, *, told: Told) -> None:
        """See Device.run."""
        try:
            done = subprocess.run(
                [sys.executable, str(AGENT), str(job)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"the agent did not end within {LIMIT_S:.0f} s", where="host") from error
        for line in done.stdout.splitlines():
            told(line)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1].strip()[-300:] if lines and done.returncode > 0 else f"signal {-done.returncode}"
            raise DeviceError(
                f"the agent ended with an error ({reason})",
                expected="LiteRT and NumPy in the Python that runs edgeface",
                where="host",
                do="pip install 'edgeface[android]'",
            )
