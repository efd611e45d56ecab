"""``demo``: the whole path on one machine, with an account of every task."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import click

from forwarder.cli.extras import require
from forwarder.cli.interruption import Interruption
from forwarder.cli.tasks import Unreachable
from forwarder.inference import readiness
from forwarder.settings.redact import without_password

#: Seconds in which a model server of the user's own must tell that it is ready.
HEALTH_TIMEOUT_S = 3.0


@click.command()
@click.option("--pool", type=click.Choice(["prefork", "gevent"]), default="prefork", show_default=True)
@click.option(
    "--tasks",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Tasks on each of the two ways.",
)
@click.option("--predict-url", help="Your own model server instead of the sample one.")
@click.option("--health-url", help="Its readiness route.  [default: /readyz beside the predict URL]")
def demo(pool: str, tasks: int, predict_url: str | None, health_url: str | None) -> int:
    """Send tasks through a real broker, worker and model server, and account for every one.

    Starts everything it needs on 127.0.0.1 and leaves nothing behind. Tasks go
    through Redis first, then as many through SQS with results in S3.
    """
    require("the demo", "boto3", "moto", "psutil", "rich")
    from rich.console import Console

    from forwarder.demo.run import Demo, Inference
    from forwarder.demo.screen import Screen
    from forwarder.testing.processes import StartFailed
    from forwarder.testing.services import NotInstalled

    inference = None
    if predict_url is not None:
        inference = Inference(
            predict_url=predict_url, health_url=health_url or _beside(predict_url), is_sample=False
        )
        # A worker would wait for it, and nobody would be told before its patience ends.
        if (reason := readiness.probe(inference.health_url, timeout_s=HEALTH_TIMEOUT_S)) is not None:
            raise Unreachable(
                f"your model server at {without_password(inference.health_url)} is not ready: {reason}; "
                "start it, or name its readiness route with --health-url"
            )
    interruption = Interruption()
    screen = Screen(Console())
    try:
        account = Demo(
            pool=pool, tasks=tasks, inference=inference, screen=screen, go_on=interruption.go_on
        ).run()
    except (NotInstalled, StartFailed) as error:
        raise click.ClickException(str(error)) from None
    screen.plain("")
    for complaint in account.complaints():
        screen.plain(f"missing or wrong: {complaint}", style="red")
    screen.plain(account.summary())
    return 0 if account.balanced else 1


def _beside(predict_url: str) -> str:
    return urlunsplit(urlsplit(predict_url)._replace(path="/readyz", query="", fragment=""))
