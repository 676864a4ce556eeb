"""What stands inside pages: templates, styles and scripts of this package's own, and what a policy calls them by."""

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def text_of(room: str, name: str) -> str:
    """Return a style or a script that lies beside a room's templates."""
    return files(room).joinpath("templates", name).read_text("utf-8")


def base_style() -> str:
    """Return the style that all pages have."""
    return text_of("guided_backprop.report", "report.css")


def source_hash(text: str) -> str:
    """Return what a content security policy calls a style or a script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def environment(room: str) -> "Environment":
    """Return what fills a room's templates in: all text is escaped, and what isn't given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    return Environment(loader=PackageLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
