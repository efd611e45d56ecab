"""How much memory a process may use, and how much of it is in use and can't be dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["setting", "cgroup2", "cgroup1", "host"]

MIB = 1024 * 1024

#: Version to the files of a memory cgroup, its limit and its usage, and the lines of memory.stat
#: with the pages of files that the kernel takes back before it kills. A page that was read twice is
#: active, and taken back all the same. Pages of a tmpfs and shared memory are "file" there, but "on
#: anon memory management lists": in neither line, and so counted as used.
#: https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/memory.html
_FILES: dict[Source, tuple[str, str, re.Pattern[str]]] = {
    "cgroup2": ("memory.max", "memory.current", re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)),
    "cgroup1": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        re.compile(r"^total_(?:in)?active_file (\d+)$", re.MULTILINE),
    ),
}

#: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
_MOUNT = re.compile(r"\S+ \S+ \S+ (?P<root>\S+) (?P<point>\S+) .* - (?P<type>\S+) \S+ (?P<options>\S+)")


@dataclass(frozen=True, slots=True)
class Limit:
    """The memory that this worker may use, who says so, and the cgroup that says it, if one does."""

    bytes: int
    source: Source
    group: Path | None = None

    def used_bytes(self) -> int | None:
        """Return what the cgroup of the limit uses now, pages of files that can be dropped left out.

        All that is in the cgroup, so also what else runs in the container: where the
        kernel can drop nothing more and that sum reaches the limit, it kills. None where
        the limit is no cgroup's, or can't be read. Two small reads; does not block.
        """
        if self.group is None:
            return None
        _, usage, droppable = _FILES[self.source]
        try:
            used = int((self.group / usage).read_text())
            stat = (self.group / "memory.stat").read_text()
        except (OSError, ValueError):
            return None
        return max(0, used - sum(map(int, droppable.findall(stat))))


def container_limit_bytes(
    *, override_mb: int | None, pid: int | None = None, root: Path = Path("/")
) -> Limit:
    """Return the memory limit: the setting (MiB), else the smallest of the cgroups above, else the host's.

    That of this process, or of ``pid``, whose container is looked into as it sees
    itself. ``root`` is the file system's, for tests. Raises OSError where there is
    no /proc/meminfo and no setting. Does not block.
    """
    if override_mb is not None:
        return Limit(override_mb * MIB, "setting")
    host = _host(root)
    if pid is None:
        groups = _groups(root / "proc/self", files=root)
    else:
        groups = _groups(root / f"proc/{pid}", files=root / f"proc/{pid}/root")
    return min([host, *_limits(groups)], key=lambda limit: limit.bytes)


def _host(root: Path) -> Limit:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("/proc/meminfo has no MemTotal")
    return Limit(int(found[1]) * 1024, "host")


def _limits(groups: Iterable[tuple[Source, Path, Path]]) -> Iterator[Limit]:
    """Yield the limit of each cgroup from the process's own up to the highest that can be seen."""
    for source, point, own in groups:
        group = own
        while True:
            bytes_max = _limit_of(group / _FILES[source][0])
            if bytes_max is not None:
                yield Limit(bytes_max, source, group)
            if group == point:
                break
            group = group.parent


def _limit_of(path: Path) -> int | None:
    try:
        return int(path.read_text())  # v1 says "no limit" with a number far above any host's memory
    except (OSError, ValueError):  # the root cgroup of v2 has no such file; v2 says "max"
        return None


def _groups(proc: Path, *, files: Path) -> Iterator[tuple[Source, Path, Path]]:
    """Yield version, mount point and own folder of the memory cgroups that are mounted.

    ``proc`` is the process's folder there, ``files`` the root of the file system that it sees.
    """
    names = _own_names(proc)
    for line in _lines(proc / "mountinfo"):
        mount = _MOUNT.match(line)
        if mount is None:
            continue
        source: Source
        if mount["type"] == "cgroup2":
            source = "cgroup2"
        elif mount["type"] == "cgroup" and "memory" in mount["options"].split(","):
            source = "cgroup1"
        else:
            continue
        if source not in names:
            continue
        point = files / mount["point"].lstrip("/")
        yield source, point, _own_folder(names[source], mount["root"], point)


def _own_folder(name: str, mounted: str, point: Path) -> Path:
    """Return the folder of the cgroup: a container often sees but its own, mounted as the root."""
    if mounted != "/":
        if name != mounted and not name.startswith(mounted + "/"):
            return point
        name = name.removeprefix(mounted)
    inside = name.strip("/")
    return point if ".." in inside.split("/") else point / inside  # ".." leads out of this namespace


def _own_names(proc: Path) -> dict[Source, str]:
    """Return version to name of the cgroups of the process.

    https://man7.org/linux/man-pages/man7/cgroups.7.html, "/proc/pid/cgroup"
    """
    names: dict[Source, str] = {}
    for line in _lines(proc / "cgroup"):
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:
            names["cgroup2"] = name
        elif "memory" in controllers.split(","):
            names["cgroup1"] = name
    return names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, or no cgroups
        return []
