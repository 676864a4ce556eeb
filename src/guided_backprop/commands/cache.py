"""The command ``guided-backprop cache``: the graphs that were compiled, and are kept for the next start."""

import click

from guided_backprop.commands.shared import one_line_errors, printable, size_text
from guided_backprop.export import cache


@click.command("cache")
@click.option("--clear", is_flag=True, help="Take out all that is kept.")
def cache_command(*, clear: bool) -> None:
    """Say where compiled graphs are kept, how many there are, and how large.

    The folder is another one if the environment variable GUIDED_BACKPROP_CACHE says so.
    """
    with one_line_errors():
        if clear:
            cache.clear()
        count, size = cache.kept()
        click.echo(f"{printable(cache.folder())}: {count} graph{'s' if count != 1 else ''}, {size_text(size)}")
