"""The command line: its group of commands, each in a file of its own.

click and rich are imported when it runs, so that without them it can still say how to install them.
"""

import sys
from typing import TYPE_CHECKING

from guided_backprop.errors import MissingExtraError
from guided_backprop.version import __version__

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run the command line; the console script and ``python -m guided_backprop`` call this."""
    try:
        group = command()
    except MissingExtraError as error:
        sys.exit(f"Error: {error}")
    group()


def command() -> "click.Group":
    """Return the command line as a click command.

    Raises:
        MissingExtraError: click or rich is not installed.
    """
    try:
        import click  # noqa: PLC0415
        import rich  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"the command line needs click and rich; received an environment without {error.name}. "
            "Run: pip install 'guided-backprop[cli]'."
        ) from error
    from guided_backprop.commands.app import app  # noqa: PLC0415
    from guided_backprop.commands.cache import cache_command  # noqa: PLC0415
    from guided_backprop.commands.check import check  # noqa: PLC0415
    from guided_backprop.commands.explain import explain  # noqa: PLC0415
    from guided_backprop.commands.export import export  # noqa: PLC0415
    from guided_backprop.commands.page import page  # noqa: PLC0415
    from guided_backprop.commands.report import report  # noqa: PLC0415
    from guided_backprop.commands.status import status_command  # noqa: PLC0415

    commands = [explain, status_command, report, check, export, page, cache_command, app]
    group = click.Group("guided-backprop", help="Which pixels move a network's score?", commands=commands)
    return click.version_option(__version__, prog_name="guided-backprop")(group)
