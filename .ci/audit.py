"""Lists every package that is installed here, with its version and licence; run by ``make audit``."""

from collections.abc import Iterable
from importlib.metadata import Distribution, distributions


def licence(package: Distribution) -> str:
    """Return what a package says of its licence: an expression, else its classifiers, else the first line of a text."""
    said = {name: package.metadata.get_all(name) or [] for name in ("License-Expression", "Classifier", "License")}
    expression = said["License-Expression"]
    classifiers = [name.rpartition(" :: ")[2] for name in said["Classifier"] if name.startswith("License ::")]
    text = [text.strip().splitlines()[0][:60] for text in said["License"] if text.strip()]
    return " / ".join(expression or classifiers or text) or "not stated"


def rows(installed: Iterable[Distribution]) -> list[tuple[str, str, str]]:
    """Return name, version and licence of each package, by name."""
    found = {each.name.lower(): (each.name, each.version, licence(each)) for each in installed}
    return [found[name] for name in sorted(found)]


if __name__ == "__main__":
    table = rows(distributions())
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
