"""What ``check`` sees of the staging folder: whether files can be made there, and on what."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from forwarder.cli.findings import Caution
from forwarder.settings.model import Settings
from forwarder.staging.folder import StagingFolder, boot_id

MOUNTS = Path("/proc/self/mountinfo")
MIB = 1024 * 1024
#: Seconds for a lock that another process may hold for a moment.
TIMEOUT_S = 3.0

#: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html: the third field is the device, the one
#: behind the lone hyphen the type.
_MOUNT = re.compile(r"^\S+ \S+ (?P<device>\d+:\d+) .* - (?P<type>\S+) ", re.MULTILINE)


def ask_staging(settings: Settings, *, mounts: Path = MOUNTS) -> str | Caution:
    """Make a file in the folder and remove it; say what would go wrong with large bodies.

    Never a failure: tasks with small bodies need no folder. Raises nothing.
    """
    parent = Path(settings.stage_folder)
    folder = StagingFolder(
        parent=parent,
        bytes_max=settings.stage_bytes_max,
        overrun_bytes=settings.destination_bytes_max,
        boot=boot_id(),
    )
    try:
        folder.create_empty(until=time.monotonic() + TIMEOUT_S).remove()
        free_bytes = _free_bytes(parent)
    except OSError as error:
        return Caution(
            f"{parent}: no file can be made there ({type(error).__name__}), so bodies by reference that are "
            "large fail",
            "set --stage-folder (FORWARDER_STAGE_FOLDER) to a folder that the worker may write to",
        )
    if _kind(parent, mounts) in {"tmpfs", "ramfs"}:
        return Caution(
            f"{parent} is in memory, and what is staged counts against the container's limit",
            "set --stage-folder (FORWARDER_STAGE_FOLDER) to a folder on a disk",
        )
    if free_bytes < settings.stage_bytes_max:
        return Caution(
            f"{parent} has {free_bytes // MIB:,} MiB free, less than --stage-bytes-max allows",
            "lower --stage-bytes-max (FORWARDER_STAGE_BYTES_MAX), or give the folder a larger disk",
        )
    return f"{parent} takes files, {free_bytes // MIB:,} MiB free"


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _kind(folder: Path, mounts: Path) -> str | None:
    """Return the type of the file system that the folder is on, None where that isn't told."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        text = mounts.read_text()
    except OSError:
        return None
    kinds = {mount["device"]: mount["type"] for mount in _MOUNT.finditer(text)}
    return kinds.get(wanted)
