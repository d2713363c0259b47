"""The commands and the one place where their errors are shown."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gdmap import __version__
from gdmap.cli.bifurcation import bifurcation
from gdmap.cli.certify import certify
from gdmap.cli.critical import critical
from gdmap.cli.demo import demo
from gdmap.cli.exponents import exponents
from gdmap.cli.orbits import orbits
from gdmap.cli.reproduce import reproduce
from gdmap.cli.sweep import sweep
from gdmap.sweeps import StoreError

app = typer.Typer(
    name="gdmap",
    help="Gradient descent as the dynamical system it is: critical step sizes, the fates of many starts, proofs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def show_version(wanted: bool) -> None:
    """Print the version and end, before any command runs."""
    if wanted:
        typer.echo(f"gdmap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before any command."""


app.command()(demo)
app.command()(critical)
app.command()(certify)
app.command()(exponents)
app.command()(orbits)
app.command()(bifurcation)
app.command()(sweep)
app.command()(reproduce)


def main() -> None:
    """Run the command line; a mistake in the input ends with one clear line and exit status 2."""
    try:
        app()
    except (ValueError, TypeError, FileNotFoundError, StoreError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if "gdmap[" not in str(error):  # not one of our own extras that is missing: a fault
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        Console(stderr=True).print(
            f"[bold red]error:[/] cannot read or write{escape(where)} ({escape(reason)}): "
            "free space or choose another folder",
            soft_wrap=True,
        )
        sys.exit(2)
