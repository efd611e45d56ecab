"""The arrows between the rooms run one way, and heavy libraries stay where they are used.

Read from the source, so a module is judged by what it says, on every branch.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "forwarder").rglob("*.py"))
}
MODULES = sorted(SOURCES)

ADAPTERS = ("inference", "brokers", "results", "hooks", "cloud", "scaling", "staging", "telemetry")
#: What the composition root is made of: like it, they know every part.
COMPOSING = ("process_parts", "telemetry_parts")
#: Pure and small: every room may import it, and it imports nothing of ours.
FOR_EVERYBODY = "backoff"
STATED_INTERFACES = (
    "addresses",
    "aws_errors",
    "lookups",
    "redis_batches",
    "forwarding.errors",
    "forwarding.ports",
    "forwarding.record",
    "settings",
)

#: Room to the rooms (or modules) that it may import besides itself.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "__main__": ("pool", "cli"),
    "pool": (),
    "stop_signals": (),
    FOR_EVERYBODY: (),
    "addresses": (),
    "aws_errors": (),
    "lookups": (),
    "redis_batches": (),
    "settings": (),
    "compat": ("settings",),
    "forwarding": (),
    "green_pool": ("green_slots",),
    "green_slots": (),
    "prefork_pool": (),
    "drain": ("brokers.deliveries", "brokers.leases", "brokers.background", "stop_signals"),
    "draining_worker": ("brokers.deliveries", "drain"),
    **dict.fromkeys(ADAPTERS, STATED_INTERFACES),
    **dict.fromkeys(COMPOSING, ("__init__", "addresses", "settings", "forwarding", *ADAPTERS)),
    "app": ("__init__", "celery_app", "pool", *COMPOSING, "settings", "forwarding", *ADAPTERS),
    "celery_app": ("app", "settings"),
    "watch": ("aws_errors", "settings", *ADAPTERS),
    "endpoints": ("__init__", "watch", "settings", *ADAPTERS),
    "worker": (
        "__init__",
        "app",
        "drain",
        "draining_worker",
        "endpoints",
        "watch",
        "pool",
        "stop_signals",
        "settings",
        "forwarding",
        "tuning",
        *ADAPTERS,
    ),
    "cli": (
        "__init__",
        "aws_errors",
        "cli.demo",
        "app",
        "worker",
        "pool",
        "compat",
        "settings",
        "forwarding",
        *ADAPTERS,
    ),
    "cli.demo": (
        "__init__",
        "cli.extras",
        "cli.interruption",
        "cli.tasks",
        "demo",
        "inference.readiness",
        "testing",
        "settings",
    ),
    "cli.loadtest": ("cli", "loadtest", "testing", "settings", "forwarding"),
    "tuning.children": ("tuning", "testing", "settings", "scaling.process_memory"),
    "cli.tune": ("cli", "app", "tuning", "settings", "forwarding", *ADAPTERS),
    "tuning": ("settings", "forwarding", "scaling", "staging.threshold"),
    "testing": ("__init__", "settings"),
    "demo": ("__init__", "testing", "settings", "forwarding.errors"),
    "loadtest": ("__init__", "testing", "settings", "scaling.container", "scaling.process_memory"),
}
READS_ENVIRONMENT = (
    "__main__",
    "celery_app",
    "cli",
    "cli.demo",
    "cli.loadtest",
    "cli.tune",
    "compat",
    "demo",
    "pool",
    "settings",
    "testing",
)
#: Loaded by no worker process as long as its settings don't ask for them.
ON_DEMAND = {
    "boto3", "botocore", "datadog", "ddtrace", "flask", "gevent", "moto", "prometheus_client", "rich",
}  # fmt: skip
LOADED_ONLY_ON_DEMAND = ("cli.demo", "demo", "green_slots", "loadtest", "testing", "tuning")
NETWORK_PARTS_OF_THE_STANDARD_LIBRARY = {"asyncio", "http.client", "socket", "ssl", "urllib.request"}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module; ``at_load`` tells whether importing the importer imports it."""

    name: str
    line: int
    at_load: bool


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text())


@functools.cache
def imports_of(module: str) -> list[Import]:
    """Return every import of a module of ours, those inside functions included."""

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, at_load)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: relative import"
                for alias in child.names:
                    yield Import(_module_named(child.module or "", alias.name), child.lineno, at_load)
            elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                yield from visit(child, at_load=False)
            else:
                deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, at_load and not deferred)

    return list(visit(tree_of(module), at_load=True))


def _module_named(package: str, name: str) -> str:
    """Return what ``from package import name`` imports: a module of ours, or else the package."""
    return f"{package}.{name}" if f"{package}.{name}" in SOURCES else package


def room_of(module: str) -> str:
    """Return the room of a module of ours: its longest entry in the table."""
    if module == "forwarder":
        return "__init__"
    path = module.removeprefix("forwarder.")
    rooms = [room for room in MAY_IMPORT if within(path, room)]
    assert rooms, f"{module} is in no room: give it a place in MAY_IMPORT"
    return max(rooms, key=len)


def within(path: str, room: str) -> bool:
    return path == room or path.startswith(room + ".")


def is_ours(name: str) -> bool:
    return name == "forwarder" or name.startswith("forwarder.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(module)
    for found in imports_of(module):
        if not is_ours(found.name) or room_of(found.name) == room:
            continue
        path = found.name.removeprefix("forwarder.") if found.name != "forwarder" else "__init__"
        assert any(within(path, allowed) for allowed in (FOR_EVERYBODY, *MAY_IMPORT[room])), (
            f"line {found.line}: {room} imports {found.name}"
        )


def test_the_package_imports_nothing_because_it_is_loaded_before_the_patch() -> None:
    assert imports_of("forwarder") == []


@pytest.mark.parametrize("module", ["forwarder.__main__", "forwarder.pool"])
def test_what_is_loaded_before_the_patch_imports_only_light_parts_of_the_standard_library(
    module: str,
) -> None:
    light = {"__future__", "collections.abc", "os", "pathlib", "sys"}
    loaded = {found.name for found in imports_of(module) if found.at_load}
    assert loaded <= light


@pytest.mark.parametrize(
    "module",
    [
        f"forwarder.{FOR_EVERYBODY}",
        *(
            module
            for module in MODULES
            if within(module, "forwarder.forwarding") and not module.endswith(".task")
        ),
    ],
)
def test_forwarding_knows_no_library_and_no_network(module: str) -> None:
    for found in imports_of(module):
        assert found.name not in NETWORK_PARTS_OF_THE_STANDARD_LIBRARY, f"line {found.line}: {found.name}"
        known = is_ours(found.name) or found.name.partition(".")[0] in sys.stdlib_module_names
        assert known, f"line {found.line}: {found.name}"


@pytest.mark.parametrize(
    "module", [module for module in MODULES if room_of(module) not in LOADED_ONLY_ON_DEMAND]
)
def test_heavy_libraries_are_imported_inside_the_functions_that_need_them(module: str) -> None:
    loaded = {found.name.partition(".")[0] for found in imports_of(module) if found.at_load}
    assert not loaded & ON_DEMAND


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) not in READS_ENVIRONMENT])
def test_the_environment_is_read_in_one_place(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        match node:
            case ast.Attribute(attr=name) | ast.ImportFrom(module="os", names=[ast.alias(name=name)]):
                assert name not in ("environ", "getenv"), f"line {node.lineno} reads the environment"
