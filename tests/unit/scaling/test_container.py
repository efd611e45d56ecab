"""The memory limit, from files as the kernels write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forwarder.scaling.container import Limit, Source, container_limit_bytes

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


def test_another_processs_limit_is_that_of_its_cgroup_as_its_container_sees_it(files: Path) -> None:
    v2(files, name="/mine", limits={"mine": 900 * MB})
    mount = V2_MOUNT.format(root="/docker/abc")
    write(files, {"proc/7/cgroup": "0::/docker/abc/inner", "proc/7/mountinfo": mount})
    write(files, {"proc/7/root/sys/fs/cgroup/inner/memory.max": 256 * MB})
    assert container_limit_bytes(override_mb=None, pid=7, root=files).bytes == 256 * MB
    assert found(files) == (900, "cgroup2")
    gone = container_limit_bytes(override_mb=None, pid=8, root=files)
    assert (gone.bytes, gone.source) == (HOST_MB * MB, "host")


def test_a_limit_above_the_hosts_memory_is_none(files: Path) -> None:
    v2(files, name="/pod", limits={"pod": 2 * HOST_MB * MB})
    assert found(files) == (HOST_MB, "host")


@pytest.mark.parametrize(
    ("source", "usage", "stat"),
    [
        ("cgroup2", "memory.current", "anon 9|file 400|inactive_file 200|active_file 130"),
        (
            "cgroup1",
            "memory.usage_in_bytes",
            "inactive_file 7|active_file 5|total_inactive_file 200|total_active_file 130|total_unevictable 3",
        ),
    ],
)
def test_files_on_a_disk_are_not_used_memory_also_when_they_were_read_twice(
    tmp_path: Path, source: Source, usage: str, stat: str
) -> None:
    """A page that is read again is active, and dropped before anything is killed all the same."""
    write(tmp_path, {usage: 500, "memory.stat": stat.replace("|", "\n")})
    assert Limit(1000, source, tmp_path).used_bytes() == 170


def test_shared_memory_and_files_in_memory_are_used(tmp_path: Path) -> None:
    """The kernel counts a tmpfs among the files, and lists its pages with the anonymous ones."""
    stat = "file 300\nshmem 300\ninactive_anon 300\nactive_anon 90\ninactive_file 0\nactive_file 0"
    write(tmp_path, {"memory.current": 500, "memory.stat": stat})
    assert Limit(1000, "cgroup2", tmp_path).used_bytes() == 500


def test_two_files_that_are_read_one_after_the_other_never_make_less_than_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"memory.current": 500, "memory.stat": "inactive_file 300\nactive_file 300"})
    assert Limit(1000, "cgroup2", tmp_path).used_bytes() == 0


def test_what_can_not_be_read_is_not_known(tmp_path: Path) -> None:
    assert Limit(1000, "cgroup2", tmp_path / "gone").used_bytes() is None
    assert Limit(1000, "host").used_bytes() is None
