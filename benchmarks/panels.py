"""Draw the dashboard's panels from a real run: real workers and Prometheus, the dashboard's own expressions.

    python -m benchmarks.panels docs/images/panels.svg

Two workers (gevent, and prefork that scales itself) take tasks from one queue for four minutes: a quiet
minute, a burst that the queue takes up, half a minute without inference server, a worker that is killed.
Needs Debian's package prometheus.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from deploy.observability.panels import ROWS, Panel
from deploy.observability.queries import Query
from forwarder.loadtest.charts import HEIGHT, WIDTH, Line, chart
from forwarder.testing.aws import Moto
from forwarder.testing.aws_resources import create_bucket, create_delivery_stream, create_role
from forwarder.testing.processes import Command, clean_env, free_port
from forwarder.testing.producer import Producer, s3_conf
from forwarder.testing.services import ModelServer, NotInstalled, Service, Valkey, http_status
from forwarder.testing.worker import Worker

QUEUE, BUCKET, STREAM = "forwarder", "results", "records"
STEP_S, WINDOW = 2, "10s"
HEAD, GAP = 34, 10
SCALES = {"bytes": (2**20, "MiB"), "a second": (1, "a second"), "s": (1, "s")}


class Prometheus(Service):
    """Prometheus, scraping the ports once a second."""

    name = "prometheus"

    def __init__(self, *, ports: Mapping[str, int]) -> None:
        super().__init__()
        self._ports = ports

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        program = shutil.which("prometheus")
        if program is None:
            raise NotInstalled("no Prometheus: apt-get install prometheus")
        targets = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
            for name, port in self._ports.items()
        ]
        jobs = [{"job_name": "forwarder", "static_configs": targets}]
        settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(settings))
        options = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data"]
        return Command(
            argv=[program, *options, f"--web.listen-address=127.0.0.1:{self.port}"], env=clean_env(folder)
        )

    def answers(self) -> bool:
        """Return whether it takes questions."""
        return http_status(self.port, "/-/ready") == 200

    @property
    def url(self) -> str:
        """Return its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, expression: str, *, start: float, end: float) -> list[dict[str, Any]]:
        """Return the series that the expression has between two times."""
        asked = {"query": expression, "start": start, "end": end, "step": STEP_S}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found


class Load:
    """Sends ``per_second`` tasks, of which one in 25 is broken, until it is stopped."""

    def __init__(self, *, producer: Producer) -> None:
        self.per_second = 4.0
        self._producer = producer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(1 / self.per_second):
            number += 1
            good = {"args": {"numbers": [number], "behaviour": {"sleep_s": 0.2 + number % 7 / 10}}}
            self._producer.send({"cloudpickle": "x"} if number % 25 == 0 else good, time.time())


def run(stack: ExitStack) -> tuple[Prometheus, float, float]:
    """Let the workers work for four minutes; return Prometheus, and when it began and ended."""
    valkey, moto = stack.enter_context(Valkey()), stack.enter_context(Moto())
    model = stack.enter_context(ModelServer())
    create_bucket(moto.env, BUCKET)
    create_delivery_stream(moto.env, STREAM, bucket=BUCKET, role_arn=create_role(moto.env, "delivers"))
    ports = {"gevent": free_port(), "prefork": free_port()}
    prometheus = stack.enter_context(Prometheus(ports=ports))
    env = model.env | moto.env
    env |= {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": f"s3://{BUCKET}/tasks/",
        "FORWARDER_VISIBILITY_TIMEOUT_S": "10",
        "FORWARDER_HTTP_HOST": "127.0.0.1",
        "FORWARDER_HOOKS": "logging,callback",
        "FORWARDER_FIREHOSE_STREAM": STREAM,
        "FORWARDER_CALLBACK_URL": f"{model.url}/predict",
        "FORWARDER_CALLBACK_ALLOW": "127.0.0.0/8",
        "FORWARDER_MEMORY_LIMIT_MB": "1024",
        "FORWARDER_CONCURRENCY": "8",
    }

    def worker(pool: str, *args: str) -> Worker:
        own = env | {"FORWARDER_HTTP_PORT": str(ports[pool])}
        return stack.enter_context(Worker(pool=pool, env=own, args=args))

    worker("gevent").wait_ready()
    prefork = worker("prefork", "--autoscale", "4,1")
    prefork.wait_ready()
    conf = s3_conf(moto.env, bucket=BUCKET, prefix="tasks/")
    producer = Producer(broker_url=valkey.url, backend="s3://", queue=QUEUE, conf=conf)
    stack.callback(producer.close)
    began = time.time()
    with Load(producer=producer) as load:
        time.sleep(50)
        load.per_second = 30
        time.sleep(50)
        load.per_second = 6
        time.sleep(40)
        model.control(ready=False, behaviour={"status": 503})
        time.sleep(30)
        model.control(ready=True, behaviour={})
        time.sleep(20)
        prefork.kill()
        time.sleep(10)
        worker("prefork", "--autoscale", "4,1")
        time.sleep(40)
    return prometheus, began, time.time()


def lines(prometheus: Prometheus, query: Query, start: float, end: float, divisor: float) -> Iterator[Line]:
    """Yield the lines that one question of a panel has."""
    expression = re.sub(r"\$(job|instance|queue)", ".*", query.prometheus).replace("$__rate_interval", WINDOW)
    for series in prometheus.ask(expression, start=start, end=end):
        label = re.sub(r"\{\{(\w+)\}\}", partial(_value, series["metric"]), query.legend)
        points = [(at - start, float(value) / divisor) for at, value in series["values"]]
        yield Line(label=label or "all", points=[point for point in points if not math.isnan(point[1])])


def _value(labels: Mapping[str, str], found: re.Match[str]) -> str:
    return labels.get(found[1], "")


def drawn(prometheus: Prometheus, panel: Panel, start: float, end: float) -> str:
    """Return one panel as SVG."""
    divisor, unit = SCALES.get(panel.unit, (1, ""))
    found = [line for query in panel.queries for line in lines(prometheus, query, start, end, divisor)]
    # Counters that never rose would fill the legend, as Grafana's tooltip hides them.
    told = [line for line in found if any(y for _, y in line.points)] or found
    coloured = [Line(label=line.label, points=line.points, colour=colour) for colour, line in enumerate(told)]
    title = f"{panel.title}, {unit}" if unit else panel.title
    return chart(title=title, lines=coloured, x_title="seconds")


def page(prometheus: Prometheus, start: float, end: float) -> str:
    """Return all rows as one SVG, two panels beside each other."""
    parts: list[str] = []
    y = GAP
    for row in ROWS:
        parts.append(f'<text x="{GAP}" y="{y + 22}" font-size="17" font-weight="600">{row.title}</text>')
        y += HEAD
        for index, panel in enumerate(row.panels):
            x = GAP + index % 2 * (WIDTH + GAP)
            place = f'x="{x}" y="{y + index // 2 * (HEIGHT + GAP)}"'
            parts.append(f'<rect {place} width="{WIDTH}" height="{HEIGHT}" fill="#fff" stroke="#ddd"/>')
            parts.append(drawn(prometheus, panel, start, end).replace("<svg ", f"<svg {place} ", 1))
        y += (len(row.panels) + 1) // 2 * (HEIGHT + GAP)
    width = 2 * WIDTH + 3 * GAP
    head = f'<svg viewBox="0 0 {width} {y}" xmlns="http://www.w3.org/2000/svg" font-family="sans-serif">'
    return f'{head}<rect width="{width}" height="{y}" fill="#f4f5f7"/>{"".join(parts)}</svg>\n'


def main() -> None:
    """Run, and write the picture to the file that is named."""
    with ExitStack() as stack:
        prometheus, began, ended = run(stack)
        Path(sys.argv[1]).write_text(page(prometheus, began, ended), encoding="utf-8")


if __name__ == "__main__":
    main()
