"""Where a bundle can be checked: this machine, emulated ARM64, a board, a phone, a Mac."""

from __future__ import annotations

from edgeface.errors import UsageError, did_you_mean
from targets.devices.device import Device

FORMS = ("host", "arm64", "ssh:USER@HOST[:PORT]", "adb[:SERIAL]", "macos")


def open_device(on: str, *, cpu: str | None = None) -> Device:
    """A device by what is typed after `--on`.

    Args:
        on: One of FORMS.
        cpu: Which processor `arm64` imitates; None takes its default.

    Raises:
        UsageError: No such device, or `cpu` for a device that has a processor of its own.
        MissingToolError: A tool that reaches it, or the device, is not there.
    """
    kind, colon, address = on.partition(":")
    names = [form.partition(":")[0].partition("[")[0] for form in FORMS]
    if kind not in names or (colon and kind not in ("ssh", "adb")) or (not address and (colon or kind == "ssh")):
        raise UsageError(
            f"{on!r}",
            expected=f"one of {', '.join(FORMS)}",
            where="--on",
            do=did_you_mean(kind, names) if kind not in names else "Write it so",
        )
    if cpu is not None and kind != "arm64":
        raise UsageError(f"--cpu {cpu}", expected="--on arm64 with it", where=f"--on {on}", do="Leave --cpu out")
    match kind:
        case "arm64":
            from targets.devices.arm64 import Arm64

            return Arm64() if cpu is None else Arm64(cpu=cpu)
        case "ssh":
            from targets.devices.ssh import Ssh

            return Ssh(address)
        case "adb":
            from targets.devices.adb import Adb

            return Adb(address)
        case "macos":
            from targets.devices.macos import Macos

            return Macos()
        case _:
            from targets.devices.host import Host

            return Host()
