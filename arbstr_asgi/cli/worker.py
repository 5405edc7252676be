"""`python -m arbstr_asgi.cli.worker`: a worker process of `arbstr serve --workers N`, started by the supervisor."""

import sys

from arbstr_asgi.app import Arbstr
from arbstr_asgi.cli.server import overridden, prepare, run, serve_on
from arbstr_asgi.config.config import Config
from arbstr_asgi.errors import ConfigError
from arbstr_asgi.telemetry.multiprocess import use_worker_number


def main(path: str, listen: str, workers: str, listeners: str, alive: str) -> None:
    """Serve on the listening sockets until SIGTERM or SIGINT, or until the supervisor has ended (the pipe `alive`)."""
    try:
        config = overridden(Config.load(path), listen.split(","), int(workers))
    except ConfigError as error:
        sys.exit(f"Error: {error.message}")
    use_worker_number()
    prepare(config.logging.number)
    server, fds = config.server, [int(listener) for listener in listeners.split(",")]
    run(serve_on(Arbstr(config), fds, server.grace, server.keep_alive, alive=int(alive)))


if __name__ == "__main__":
    main(*sys.argv[1:])
