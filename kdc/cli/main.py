"""The program `kdc`: its verbs, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import sys

import typer

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

INTERRUPTED = 130

app = typer.Typer(
    name="kdc",
    help="A compression compiler: a trained teacher, data, a target and a budget in; a proven student out.",
    epilog="Exit codes: 0 done, 1 a fault of kdc's, 2 a mistake in what was given, 3 the budget cannot be met, "
    "130 interrupted. --debug, anywhere, shows tracebacks.",
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
    sys.exit(_run(debug))


def _run(debug: bool) -> int:
    try:
        from kdc.core.user_frames import exits_refused

        with exits_refused():
            # Typer makes a Ctrl-C this code, and tells nobody
            code = app(standalone_mode=False) or 0
        return _interrupted() if code == INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted()
    except (Exception, SystemExit) as error:
        if debug:
            raise
        return _explained(error)


def _interrupted() -> int:
    kept = "finished steps and the last checkpoint are kept"
    print(f"kdc: interrupted; {kept}: run the same command again to go on", file=sys.stderr)
    return INTERRUPTED


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
