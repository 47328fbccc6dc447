"""The program `kdc`: its verbs, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import typer

from kdc.cli import stopping
from kdc.cli.advise import advise
from kdc.cli.bench import bench
from kdc.cli.build import build
from kdc.cli.compress import compress
from kdc.cli.passes import passes
from kdc.cli.plan import plan
from kdc.cli.profile import profile
from kdc.cli.schema import schema
from kdc.cli.targets import targets
from kdc.cli.verify import verify
from kdc.cli.why import why
from kdc.core import scratch
from kdc.core.user_frames import exits_refused

INTERRUPTED = 130

app = typer.Typer(
    name="kdc",
    help="A compression compiler: a trained teacher, data, a target and a budget in; a proven student out.",
    epilog="Exit codes: 0 done, 1 a fault of kdc's, 2 a mistake in what was given, 3 the budget cannot be met, "
    "130 interrupted, 143 and 129 ended by SIGTERM and SIGHUP. --debug, anywhere, shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (compress, plan, profile, build, verify, passes, targets, why, schema):
    app.command()(verb)
app.add_typer(bench, name="bench")
app.add_typer(advise, name="advise")


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    with stopping.listening():
        code = _run(debug)
        with stopping.deaf():  # what an interrupted cleaning up has left
            scratch.end()
    sys.exit(code)


def _run(debug: bool) -> int:
    try:
        scratch.sweep()
        # torch would make a folder in the system's temporary one, by a name that others can guess, and leave it there.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch.lasting_folder("inductor")))
        with exits_refused():
            # Typer makes a Ctrl-C this code, and tells nobody
            code = app(standalone_mode=False) or 0
        return _interrupted() if code == INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted()
    except (Exception, SystemExit) as error:
        if stopping.received:  # a process of kdc's may have got the signal too, and its end be the error
            return _interrupted()
        if debug:
            raise
        return _explained(error)


def _interrupted() -> int:
    kept = "finished steps and the last checkpoint are kept"
    how = "interrupted" if stopping.exit_code() == INTERRUPTED else f"ended by {stopping.name()}"
    with suppress(OSError):  # the terminal may be gone: that is what SIGHUP says
        print(f"kdc: {how}; {kept}: run the same command again to go on", file=sys.stderr)
    return stopping.exit_code()


def _explained(error: BaseException) -> int:
    from kdc.core.errors import KdcError

    if isinstance(error, KdcError):
        print(f"kdc: {error}", file=sys.stderr)
        return error.exit_code
    if hasattr(error, "format_message"):  # click's: a wrong flag or argument
        print(f"kdc: {error.format_message()} (kdc --help shows the verbs and flags)", file=sys.stderr)
        return 2
    print(
        f"kdc: a fault of kdc's own: {type(error).__name__}: {error}\n"
        "  → run the same command with --debug and report what it prints",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    main()
