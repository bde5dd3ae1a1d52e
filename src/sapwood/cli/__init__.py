"""The command line: each command calls the library, and every error is one line.

Nothing here imports torch before a command runs, so that ``--help`` comes at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from sapwood import __version__
from sapwood.cli.benching import bench
from sapwood.cli.costing import cost
from sapwood.cli.drawing import masks
from sapwood.cli.exporting import export
from sapwood.cli.learning import learn
from sapwood.cli.listing import backbones, benchmarks, methods
from sapwood.cli.packing import pack
from sapwood.cli.probing import probe
from sapwood.cli.repairing import classes, relabel
from sapwood.cli.screen import complain, error_line
from sapwood.cli.serving import serve
from sapwood.cli.showing import report, show
from sapwood.cli.trying import demo
from sapwood.cli.using import evaluate, predict
from sapwood.cli.versions import prune, rollback, undo
from sapwood.errors import ConfigError, UsageError
from sapwood.world import follows, launched

__all__ = ["app", "main"]

# rich_markup_mode=None: plain help costs half of what the boxed one costs.
app = typer.Typer(name="sapwood", rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)
_COMMANDS = (
    learn,
    predict,
    evaluate,
    show,
    undo,
    rollback,
    prune,
    classes,
    relabel,
    probe,
    pack,
    report,
    serve,
    export,
    bench,
    cost,
    demo,
    masks,
    methods,
    backbones,
    benchmarks,
)
for _command in _COMMANDS:
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sapwood {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand after the command too.")
    ] = False,
) -> None:
    """Learn new classes of pictures and masks round by round, without the old pictures, on a small machine.

    Errors are one line on stderr. Exit codes: 0; 1 the run failed; 2 something you can mend; 3 --max-drop;
    130 stopped.
    """
    if launched() > 1 and context.invoked_subcommand != "learn":
        raise ConfigError(f"several processes can only learn together; start `{context.invoked_subcommand}` once")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (``sys.argv`` by default) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text of the terminal's encoding
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:options]
    rest = [argument for argument in given[:options] if argument != "--debug"] + given[options:]
    try:
        get_command(app).main(args=rest, prog_name="sapwood")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = error_line(error)
        if not (follows() and isinstance(error, UsageError)):  # which all processes meet, and one speaks of
            complain(line)
        sys.exit(code)
    sys.exit(0)
