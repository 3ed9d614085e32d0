"""What a device is: something that runs a job folder and leaves the answers in it.

A job is a folder with everything a device needs: job.json, pictures.npy and the model files. `agent.py` runs it there
and writes result.json with one answer file for each model; what the device sent is judged by targets/devices/job.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

AGENT = Path(__file__).with_name("agent.py")
JOB, RESULT, PICTURES, INPUTS = "job.json", "result.json", "pictures.npy", "inputs.npy"

# What agent.py runs a file by.
AGENT_RUNTIMES = ("tflite-xnnpack", "tflite-builtin")

Told = Callable[[str], None]


class Device(Protocol):
    """Something that can run the agent.

    Attributes:
        name: As typed after `--on`: "arm64", "ssh:pi@board", "adb:SERIAL".
        emulated: True when its processor is imitated, so that times there mean nothing.
        detail: What it is, in a few words: "cortex-a53 under qemu-user 7.2".
    """

    @property
    def name(self) -> str: ...

    @property
    def emulated(self) -> bool: ...

    @property
    def detail(self) -> str: ...

    def run(self, job: Path, *, told: Told) -> None:
        """Run the agent on a job; afterwards result.json and the answer files lie in `job`.

        Whatever happens, nothing is left on the device.

        Args:
            job: The job folder, on this machine.
            told: Called with lines for whoever waits.

        Raises:
            MissingToolError: The device, or a tool to reach it, is not there.
            DeviceError: The device was lost, is full, or its agent ended with an error; with its own words.
        """
        ...
