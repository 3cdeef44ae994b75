"""Internal. The command line `mixer-equiv`: one module for each command, named like it.

Shared parts: `options` (options and their values), `examples` (below the options in help), `output` (text, tables and
files), `progress`, and `exit_status` (errors and signals). At its top a module imports only what its options need, so
that help is quick; a command imports the rest when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mixer_equiv.cli import bench, convert, examples, inspect, layouts, mutate, reports, verify
from mixer_equiv.cli.output import say

app = typer.Typer(
    name="mixer-equiv",
    help="Convert MLP-Mixer weights between implementations, and prove two Mixers to be the same function.",
    epilog="Exit status: 0 equivalent, done, 1 not equivalent, 2 bad input or usage, 3 inexpressible or not compared.",
    no_args_is_help=True,
    rich_markup_mode=None,  # whose tables leave descriptions a dozen columns of a narrow terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(convert.convert)
app.command()(inspect.inspect)
app.command(epilog=examples.LAYOUTS)(layouts.layouts)
app.command(epilog=examples.VERIFY)(verify.verify)
app.command()(reports.reports)
app.command()(mutate.mutate)
app.command()(bench.bench)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from mixer_equiv import __version__

        say(f"mixer-equiv {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
