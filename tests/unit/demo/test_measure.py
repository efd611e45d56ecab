"""Reading the worker's log."""

from __future__ import annotations

from forwarder.demo.measure import Memory, client_builds


def test_client_builds_of_all_processes_are_counted_and_other_services_are_not() -> None:
    log = (
        "INFO 7 cloud: aws_client_built service=firehose builds=1 expires_in_s=3600\n"
        "INFO 8 cloud: aws_client_built service=firehose builds=1 expires_in_s=3600\n"
        "INFO 8 cloud: aws_client_built service=s3 builds=1 expires_in_s=never\n"
        "WARNING 8 cloud: aws_client_build_failed service=firehose\n"
    )
    assert client_builds(log) == 2


def test_memory_is_told_in_mebibytes() -> None:
    figures = Memory(processes=5, rss_bytes=318 * 2**20, unique_bytes=186 * 2**20)
    assert figures.words() == "RSS 318 MiB, unique 186 MiB, 5 processes"
