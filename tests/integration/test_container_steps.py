"""The Dockerfile's own steps, read from it and run in a clean environment, and the worker that they make.

A folder stands for the image's root, with an empty HOME and a fresh Python without packages. Left out is what
only root on the image's Debian can do (its packages, its user); tini is this machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from celery.result import AsyncResult

from forwarder.testing.processes import Command, Process, family, free_port
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from tests.dockerfile import Instruction, Stage, context, parse
from tests.integration.scenes import HELD, PATIENCE_S, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer

pytestmark = [
    pytest.mark.xdist_group("container"),  # the image is made once
    pytest.mark.timeout(600),  # what is downloaded counts for the first test
]

BUILD, IMAGE = parse((CHECKOUT / "Dockerfile").read_text())
(ENTRYPOINT,), (HEALTHCHECK,), (USER,) = IMAGE.all("ENTRYPOINT"), IMAGE.all("HEALTHCHECK"), IMAGE.all("USER")
UID = USER.text.partition(":")[0]
#: How this machine reaches its package index is nothing that a Dockerfile says.
OF_THE_MACHINE = ("PIP_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "HTTP", "http", "no_proxy", "NO_PROXY")


@dataclass
class Rehearsal:
    """Carries out a Dockerfile below ``root``; ``environ`` is what a container then starts with."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"

    def at(self, text: str) -> str:
        """Return the text with the image's absolute paths as they are here."""
        for path in ("/opt/forwarder", "/usr/local/bin", "/build"):
            text = text.replace(path, f"{self.root}{path}")
        return text

    def carry_out(self, stage: Stage, environ: Mapping[str, str]) -> None:
        """Run every step of the stage, which begins with ``environ``."""
        self.environ = dict(environ)
        for instruction in stage.instructions:
            if instruction.word == "ENV":
                here = Instruction("ENV", self.at(instruction.text))
                self.environ |= dict(here.pairs(self.environ))
            elif instruction.word == "WORKDIR":
                self.workdir = self.at(instruction.text)
                Path(self.workdir).mkdir(parents=True, exist_ok=True)
            elif instruction.word == "COPY":
                self._copy(instruction)
            elif instruction.word == "RUN" and not instruction.text.startswith("apt-get"):
                self._run(instruction)

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.words()
        if sources[0].startswith("--from="):
            assert sources[1:] == [target], "both stages have one root here: only the same path will do"
            return
        into = Path(self.workdir, self.at(target))
        for source in sources:
            files = context(CHECKOUT, source)
            assert files, f".dockerignore keeps {source} out of the build"
            for file in files:
                place = (
                    into / file.name if target.endswith("/") else into / file.relative_to(CHECKOUT / source)
                )
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)

    def _run(self, instruction: Instruction) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", self.at(instruction.text)],
            env=self.environ,
            cwd=self.workdir,
            capture_output=True,
            text=True,
            timeout=350,
            check=False,
        )
        assert done.returncode == 0, f"RUN {instruction.text}\n{done.stdout}\n{done.stderr}"


def base_python() -> str:
    """Return a Python that every user can run: the image's version where there is one."""
    for candidate in (shutil.which("python3.13"), "/usr/bin/python3", sys.executable):
        argv = [*as_the_images_user(), candidate or "", "-c", "import ensurepip, venv"]
        if candidate and subprocess.run(argv, capture_output=True, check=False, cwd="/").returncode == 0:
            return candidate
    pytest.fail("no Python that other users can run")


def as_the_images_user() -> list[str]:
    """Return what runs a command as the image's user; nothing where we are an ordinary user already."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]


@pytest.fixture(scope="module")
def image() -> Iterator[Rehearsal]:
    """Both stages, carried out, and what they made read-only."""
    root = Path(tempfile.mkdtemp(prefix="image-"))
    root.chmod(0o755)
    try:
        python = root / "python"
        subprocess.run([base_python(), "-m", "venv", str(python)], check=True)
        (root / "empty").mkdir()
        given = {name: os.environ[name] for name in os.environ if name.startswith(OF_THE_MACHINE)}
        environ = given | {"PATH": f"{python}/bin:{os.defpath}", "HOME": str(root / "empty")}
        made = Rehearsal(root)
        made.carry_out(BUILD, environ)
        own = {"PATH": f"{root}/usr/local/bin:{python}/bin:{os.defpath}", "HOME": "/nowhere"}
        made.carry_out(IMAGE, own)
        subprocess.run(["chmod", "-R", "a-w", str(root / "opt"), str(root / "usr")], check=True)
        yield made
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=False)
        shutil.rmtree(root)


@dataclass(frozen=True)
class Container:
    """The ENTRYPOINT's command, started as the image's user in an environment like the container's."""

    image: Rehearsal
    env: Mapping[str, str]
    process: Process

    def command(self, words: Sequence[str]) -> Command:
        """Return how to run what an instruction says."""
        argv = [*as_the_images_user(), *words]
        own = {"TMPDIR": str(self.process.folder), "FORWARDER_HTTP_HOST": "127.0.0.1"}
        own["TINI_SUBREAPER"] = "1"  # there it is process 1
        return Command(argv=argv, env=self.image.environ | own | dict(self.env))

    def start(self, *args: str) -> None:
        """Start it with the arguments that ``docker run IMAGE`` would be given."""
        if os.geteuid() == 0:
            os.chown(self.process.folder, int(UID), int(UID))
        self.process.start(self.command([*ENTRYPOINT.words(), *args]))

    def answer(self, result: AsyncResult[Any]) -> int:
        """Wait for a task's answer and return its sum; fail with the container's log."""
        self.process.wait_until(result.ready, timeout_s=PATIENCE_S)
        return total(result)

    def healthy(self) -> bool:
        """Return what HEALTHCHECK's command says."""
        words = Instruction("CMD", HEALTHCHECK.text.partition("CMD ")[2]).words()
        command = self.command(words)
        return subprocess.run(command.argv, env=command.env, check=False, capture_output=True).returncode == 0

    def worker(self) -> tuple[str, int]:
        """Return the command line and the user id of what tini started."""
        _, worker, *_ = family(self.process.pid)
        return " ".join(worker.cmdline()), worker.uids().real


@pytest.fixture
def container(
    image: Rehearsal,
    valkey: Valkey,
    model_server: ModelServer,
    queue_name: str,
    missing: Callable[[str], NoReturn],
) -> Iterator[Callable[..., Container]]:
    """Make a container with settings of its own: ``container(**environment)``."""
    if shutil.which("tini") is None:
        missing("no tini: apt-get install tini")
    with ExitStack() as stack:

        def make(**env: str) -> Container:
            settings = {
                "FORWARDER_BROKER_URL": valkey.database(0),
                "FORWARDER_RESULT_BACKEND": valkey.database(1),
                "FORWARDER_QUEUES": queue_name,
                "FORWARDER_HTTP_PORT": str(free_port()),
                **model_server.env,
            }
            process = stack.enter_context(Process(name="container", stop_timeout_s=40.0))
            return Container(image, settings | env, process)

        yield make


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_task_is_done_and_sigterm_ends_it_in_order(
    pool: str, container: Callable[..., Container], producer: MakeProducer, valkey: Valkey
) -> None:
    started = container(CELERY_WORKER_POOL=pool)
    started.start()
    sender = producer(broker_url=valkey.database(0), backend=valkey.database(1))
    assert started.answer(sender.send({"args": {"numbers": [1, 2, 3]}})) == 6
    command, uid = started.worker()
    assert command.endswith("python -m forwarder"), "the worker itself is what tini passes signals to"
    assert str(uid) == (UID if os.geteuid() == 0 else str(os.getuid()))
    wait_until(started.healthy, "HEALTHCHECK's command says that it is well")
    assert started.process.terminate() == 0, started.process.log()


def test_sigterm_lets_the_running_task_finish(
    container: Callable[..., Container], producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    started = container()
    started.start()
    sender = producer(broker_url=valkey.database(0), backend=valkey.database(1))
    held = sender.send({"args": {"numbers": [7], "behaviour": HELD}})
    model_server.wait_in_flight(1)
    os.kill(started.process.pid, signal.SIGTERM)
    started.process.wait_until(lambda: "drain" in started.process.log().lower(), timeout_s=PATIENCE_S)
    model_server.control(release=True)
    assert started.answer(held) == 7
    assert started.process.wait_exit(timeout_s=PATIENCE_S) == 0


def test_with_the_variable_it_runs_under_ddtrace(
    container: Callable[..., Container], producer: MakeProducer, valkey: Valkey
) -> None:
    nobody_there = {
        "DD_TRACE_AGENT_URL": "http://127.0.0.1:1",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    }
    started = container(FORWARDER_DDTRACE="1", DD_REMOTE_CONFIGURATION_ENABLED="false", **nobody_there)
    started.start()
    sender = producer(broker_url=valkey.database(0), backend=valkey.database(1))
    assert started.answer(sender.send({"args": {"numbers": [4]}})) == 4
    assert "ddtrace" in Path(f"/proc/{family(started.process.pid)[1].pid}/maps").read_text()
    assert "FORWARDER_DDTRACE" not in started.process.log(), "it is no setting of the worker's"
    assert started.process.terminate() == 0


def test_without_the_variable_nothing_of_ddtrace_is_loaded(
    container: Callable[..., Container], producer: MakeProducer, valkey: Valkey
) -> None:
    started = container()
    started.start()
    sender = producer(broker_url=valkey.database(0), backend=valkey.database(1))
    assert started.answer(sender.send({"args": {"numbers": [4]}})) == 4
    assert "ddtrace" not in Path(f"/proc/{family(started.process.pid)[1].pid}/maps").read_text()


def test_the_variable_takes_nothing_but_0_and_1(container: Callable[..., Container]) -> None:
    started = container(FORWARDER_DDTRACE="maybe")
    started.start()
    assert started.process.wait_exit(timeout_s=PATIENCE_S) == 2
    assert "accepted are 0 and 1" in started.process.log()


def test_a_sub_command_is_run_instead_of_the_worker(container: Callable[..., Container]) -> None:
    started = container()
    started.start("check")
    assert started.process.wait_exit(timeout_s=PATIENCE_S) == 0, started.process.log()


def test_the_sample_model_server_runs_from_the_same_image(image: Rehearsal) -> None:
    argv = [*as_the_images_user(), "python", "-m", "forwarder.testing.model_server", "--help"]
    done = subprocess.run(argv, env=image.environ, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_installs_packages_stays_behind(image: Rehearsal) -> None:
    left = {path.name for path in (image.root / "opt/forwarder/bin").iterdir()}
    assert "forwarder" in left
    assert not {"pip", "pip3", "hatchling", "wheel"} & left


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_every_package_has_a_wheel_for_the_images_python(processor: str, tmp_path: Path) -> None:
    version = (CHECKOUT / "Dockerfile").read_text().partition("ARG PYTHON=")[2].partition("\n")[0]
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--dry-run", "--target", str(tmp_path)]
    image = ["--python-version", version, "--python-platform", f"{processor}-manylinux_2_28"]
    exactly = ["--require-hashes", "--only-binary", ":all:", "-r", str(CHECKOUT / "requirements.txt")]
    done = subprocess.run([*uv, *image, *exactly], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
