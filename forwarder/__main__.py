"""Entry point: patch for gevent first, then everything else."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Nothing may be imported above this: a module that is imported before the
    # patch keeps blocking sockets for the life of the process.
    from forwarder import pool

    try:
        pool.prepare(sys.argv[1:], os.environ)
    except pool.PoolError as error:
        print(f"forwarder: {error}", file=sys.stderr)
        raise SystemExit(2) from None

    from forwarder.cli.main import main as run_command_line

    raise SystemExit(run_command_line())


if __name__ == "__main__":
    main()
