"""The memory limit, from files as the kernels write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forwarder.scaling.container import Limit, container_limit_bytes

MB = 1024 * 1024
HOST_MB = 16_000
V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
HYBRID_MOUNT = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a root with a host's memory and no cgroup."""
    write(tmp_path, {"proc/meminfo": f"MemTotal:       {HOST_MB * 1024} kB\nMemFree: 1 kB\n"})
    return tmp_path


def write(root: Path, contents: Mapping[str, object]) -> None:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def v2(root: Path, *, name: str, limits: Mapping[str, object], mounted: str = "/") -> None:
    write(root, {"proc/self/cgroup": f"0::{name}", "proc/self/mountinfo": V2_MOUNT.format(root=mounted)})
    write(root, {f"sys/fs/cgroup/{folder}/memory.max": limit for folder, limit in limits.items()})


def v1(root: Path, *, name: str, limits: Mapping[str, object], mounted: str = "/") -> None:
    mounts = "\n".join([CPU_MOUNT, V1_MOUNT.format(root=mounted), HYBRID_MOUNT])
    write(root, {"proc/self/cgroup": f"5:cpu:/x\n4:memory:{name}\n0::/", "proc/self/mountinfo": mounts})
    write(root, {f"sys/fs/cgroup/memory/{folder}/memory.limit_in_bytes": n for folder, n in limits.items()})


def found(root: Path) -> tuple[int, str]:
    limit = container_limit_bytes(override_mb=None, root=root)
    return limit.bytes // MB, limit.source


def test_the_setting_goes_before_everything(files: Path) -> None:
    v2(files, name="/pod", limits={"pod": 512 * MB})
    assert container_limit_bytes(override_mb=300, root=files) == Limit(300 * MB, "setting")


def test_without_a_cgroup_it_is_the_hosts_memory(files: Path) -> None:
    assert found(files) == (HOST_MB, "host")


def test_version_2_is_read(files: Path) -> None:
    v2(files, name="/pod/app", limits={"pod/app": 512 * MB})
    assert found(files) == (512, "cgroup2")


def test_max_is_no_limit(files: Path) -> None:
    v2(files, name="/pod/app", limits={"pod/app": "max", "pod": "max"})
    assert found(files) == (HOST_MB, "host")


@pytest.mark.parametrize("make", [v1, v2])
def test_the_smallest_of_the_ancestors_counts(files: Path, make: type) -> None:
    make(files, name="/a/b/c", limits={"a/b/c": 900 * MB, "a/b": 400 * MB, "a": 800 * MB})
    limit = container_limit_bytes(override_mb=None, root=files)
    assert limit.bytes == 400 * MB
    assert limit.group is not None
    assert limit.group.parts[-2:] == ("a", "b")


def test_a_container_that_sees_its_own_cgroup_as_the_root(files: Path) -> None:
    v2(files, name="/", limits={"": 512 * MB})
    assert found(files) == (512, "cgroup2")


def test_version_1_beside_a_version_2_that_has_no_memory(files: Path) -> None:
    v1(files, name="/docker/abc", limits={"docker/abc": 700 * MB, "": NO_LIMIT_V1})
    assert found(files) == (700, "cgroup1")


def test_the_number_that_means_no_limit_in_version_1(files: Path) -> None:
    v1(files, name="/docker/abc", limits={"docker/abc": NO_LIMIT_V1})
    assert found(files) == (HOST_MB, "host")


def test_version_1_mounted_from_the_containers_own_cgroup(files: Path) -> None:
    v1(files, name="/docker/abc", mounted="/docker/abc", limits={"": 700 * MB})
    assert found(files) == (700, "cgroup1")
    v1(files, name="/docker/abc/inner", mounted="/docker/abc", limits={"inner": 600 * MB})
    assert found(files) == (600, "cgroup1")


@pytest.mark.parametrize("name", ["/../other", "/gone", "/docker/other"])
def test_a_name_that_is_not_to_be_seen_from_here_leaves_the_mounted_one(files: Path, name: str) -> None:
    v2(files, name=name, limits={"": 512 * MB})
    (files / "sys/fs/other").mkdir()
    assert found(files) == (512, "cgroup2")


def test_a_limit_above_the_hosts_memory_is_none(files: Path) -> None:
    v2(files, name="/pod", limits={"pod": 2 * HOST_MB * MB})
    assert found(files) == (HOST_MB, "host")


@pytest.mark.parametrize(
    ("source", "usage", "inactive"),
    [
        ("cgroup2", "memory.current", "inactive_file"),
        ("cgroup1", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_what_is_used_leaves_out_pages_of_files_that_can_be_dropped(
    tmp_path: Path, source: str, usage: str, inactive: str
) -> None:
    write(tmp_path, {usage: 500, "memory.stat": f"anon 1\n{inactive} 200\nactive_file 7"})
    assert Limit(1000, source, tmp_path).used_bytes() == 300  # type: ignore[arg-type]


def test_what_can_not_be_read_is_not_known(tmp_path: Path) -> None:
    assert Limit(1000, "cgroup2", tmp_path / "gone").used_bytes() is None
    assert Limit(1000, "host").used_bytes() is None
