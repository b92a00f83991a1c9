"""``python -m rosellm.roseinfer.server``, which is ``rosellm serve`` under its other name.

The order is the point: flags and the port are checked before anything is downloaded or loaded,
and the engine's process imports torch while this one imports its web framework.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from rosellm.roseinfer import logs
from rosellm.roseinfer.errors import EngineDeadError, RosellmError
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.keys import exposure, load_keys
from rosellm.roseinfer.server.listen import bind, check_exposure
from rosellm.roseinfer.server.report import loading
from rosellm.roseinfer.server.tls import check_tls
from rosellm.roseinfer.server.tracing_options import check_tracing


def main(argv: Sequence[str] | None = None) -> int:
    """Parse a command line and serve. Returns the exit code."""
    return reporting_errors(lambda: serve(flags.parse(sys.argv[1:] if argv is None else argv)))


def serve(options: flags.Options) -> int:
    """Serve until told to stop, which is a normal end. Returns the exit code.

    Raises:
        RosellmError: it cannot serve what it was asked to.
    """
    with contextlib.suppress(KeyboardInterrupt):
        return _serve(options)
    return 0


def _serve(options: flags.Options) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the event loop has its own
    logs.configure(options.server.log_format, access=options.server.access_log)
    options = _checked(options)
    gc.disable()  # until all is loaded, see ``run``: what is made by then stays for good
    with bind(options.server.host, options.server.port) as sock:
        options = _with_local_files(options)
        from rosellm.roseinfer.engine.supervisor import Supervisor

        client = Supervisor(options.engine, options.server.engine_restarts)
        from rosellm.roseinfer.server.run import run

        return run(options, sock, client)


def _checked(options: flags.Options) -> flags.Options:
    """With the keys, once it is clear that the server's own settings can work."""
    server = options.server
    keys = load_keys(server.api_key_file)
    if server.api_key_file is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the event loop reads the file again
    if server.api_key_file is not None and (warning := exposure(server.api_key_file)):
        logs.say(f"warning: {warning}", warning)
    check_exposure(server, keys=bool(keys))
    check_tls(server)
    check_tracing(server)
    return replace(options, keys=keys)


def _with_local_files(options: flags.Options) -> flags.Options:
    if not options.names_hub:
        return options.with_local_files(lambda _: None)
    with loading() as show:
        return options.with_local_files(show)


def reporting_errors(program: Callable[[], int]) -> int:
    """Run a program whose complaints are one clear line. Returns its exit code, 130 on Ctrl-C."""
    try:
        return program()
    except RosellmError as error:
        logs.complain(f"error: {error}")
        return 1 if isinstance(error, EngineDeadError) else 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
