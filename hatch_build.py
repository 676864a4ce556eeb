"""The README as package indexes show it, where no file of this repository lies beside it.

Links to files become links to the repository, whose address is ``Repository`` in ``project.urls``; without one they
become their text, and pictures are left out, for a link that leads nowhere is worse than none.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")
LINK = re.compile(r"\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?!\w+:|#)([^)]+)\)")


def absolute(text: str, repository: str | None) -> str:
    """Return a page whose links and pictures are right wherever it stands."""
    # Every second part is a block of code.
    parts = text.split("```")
    return "```".join(part if row % 2 else _absolute(part, repository) for row, part in enumerate(parts))


def _absolute(text: str, repository: str | None) -> str:
    if repository is None:
        text = LINK.sub(r"\1", PICTURE.sub("", text))
        return re.sub(r"\n{3,}", "\n\n", text)
    address = repository.rstrip("/")
    text = PICTURE.sub(rf"![\1]({address}/raw/main/\2)", text)
    return LINK.sub(rf"[\1]({address}/blob/main/\2)", text)


class ReadmeHook(MetadataHookInterface):
    """Puts the README into the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README."""
        text = Path(self.root, "README.md").read_text("utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
