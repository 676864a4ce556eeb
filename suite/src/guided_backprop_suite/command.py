"""The command ``guided-backprop-suite``: every case, every library that is installed, one table."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from guided_backprop_suite.adapters import LIBRARIES, ours
from guided_backprop_suite.cases import Adapter, Asked, Case, Framework, Verdict, check, judge

FRAMEWORKS = ("torch", "keras", "jax")
_WORDS = {"right": "right", "error": "error", "wrong": "**wrong**"}


def framework_of(name: str) -> Framework:
    """Return the cases of a framework, which is imported now."""
    if name == "torch":
        from guided_backprop_suite.in_torch import TORCH  # noqa: PLC0415

        return TORCH
    if name == "keras":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        from guided_backprop_suite.in_keras import KERAS  # noqa: PLC0415

        return KERAS
    from guided_backprop_suite.in_jax import JAX  # noqa: PLC0415

    return JAX


def adapter_of(where: str) -> Adapter:
    """Return the function that ``module:function`` names."""
    module, _, function = where.partition(":")
    sys.path.insert(0, os.getcwd())
    adapter: Adapter = getattr(importlib.import_module(module), function)
    return adapter


def table(cases: Sequence[Case], columns: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the Markdown table: a row a case, a column a library, and last how many are right, errors and wrong."""
    rows = [["", "case", *columns], ["---"] * (len(columns) + 2)]
    group = ""
    for index, case in enumerate(cases):
        said = case.group if case.group != group else ""
        group = case.group
        rows.append([said, case.name, *(_WORDS[column[index].word] for column in columns.values())])
    counts = [[sum(cell.word == word for cell in column) for word in _WORDS] for column in columns.values()]
    rows.append(["", f"right / error / wrong, of {len(cases)}", *(" / ".join(map(str, count)) for count in counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(path: Path, name: str, text: str) -> None:
    """Replace what stands between a framework's two marker lines of a file."""
    start, end = f"<!-- suite:{name}:start -->", f"<!-- suite:{name}:end -->"
    before, found_start, rest = path.read_text("utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        sys.exit(f"{path} must contain the lines {start} and {end}, in this order.")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", "utf-8")


def failures(cases: Sequence[Case], column: Sequence[Verdict]) -> list[str]:
    """Return what is not right of a library that claims to be; an error is, where no map is or where it may refuse."""
    failed = []
    for case, cell in zip(cases, column, strict=True):
        may_be_error = case.may_be_refused or case.asked is Asked.REFUSAL
        if cell.word == "wrong" or (cell.word == "error" and not may_be_error):
            failed.append(case.name)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the table of one framework; return 1 if guided-backprop, or the adapter that is given, is not right."""
    parser = argparse.ArgumentParser(prog="guided-backprop-suite", description="Is every ReLU guided?")
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--adapter", metavar="MODULE:FUNCTION", help="try this function alone")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the markers of FILE")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    framework = framework_of(given.framework)
    if faults := [f"{case.name} is {fault}" for case in framework.cases if (fault := check(case, framework))]:
        sys.exit("\n".join(faults))
    installed = {
        title: library.explain
        for library in LIBRARIES
        if given.framework in library.frameworks and (title := library.title)
    }
    chosen = {given.adapter: adapter_of(given.adapter)} if given.adapter else installed
    columns = {
        title: [judge(adapter, case, framework) for case in framework.cases] for title, adapter in chosen.items()
    }
    for title, column in columns.items():
        for case, cell in zip(framework.cases, column, strict=True):
            if cell.note:
                print(f"{title}, {case.name}: {cell.word}, {cell.note}", file=sys.stderr)
    text = table(framework.cases, columns)
    print(text)
    if given.write:
        write(given.write, given.framework, text)
    must_be_right = [title for title, adapter in chosen.items() if given.adapter or adapter is ours]
    return int(any(failures(framework.cases, columns[title]) for title in must_be_right))


if __name__ == "__main__":
    sys.exit(main())
