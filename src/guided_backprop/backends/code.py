"""What the code of a function reads besides its arguments: global names, attributes; and what it writes alone.

What code writes and does not read, as a counter of calls or a list that it appends to, can't change what it computes.
"""

import dis
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

# Steps that only move things on the stack.
_MOVES = frozenset(
    "CACHE NOP PUSH_NULL PRECALL COPY SWAP RESUME EXTENDED_ARG COPY_FREE_VARS MAKE_CELL NOT_TAKEN".split()
)
_NAME = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")
# One letter for each kind of step: a name, an argument, a constant, an attribute; and what is done with them.
_LETTERS = {
    **dict.fromkeys(_NAME, "n"),
    **dict.fromkeys(("STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"), "N"),
    **dict.fromkeys(("LOAD_CONST", "LOAD_SMALL_INT"), "c"),
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"), "f"),
    **dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD"), "a"),
    **{"BINARY_OP": "o", "BINARY_SUBSCR": "s", "STORE_SUBSCR": "S", "STORE_ATTR": "A", "CALL": "C", "POP_TOP": "p"},
}
# calls.append(1) | count += 1 | count[0] += 1 | self.count += 1
_WRITES = re.compile(r"na[cfan]*Cp|ncoN|ncscoS|nco?coS|facoA")
_APPENDING = ("append", "add")


@dataclass(frozen=True)
class Uses:
    """What code uses.

    Attributes:
        globals: the global names that it reads.
        written: the names, global or closed over, that it writes and does not read.
        attributes: the attributes that it reads.
        written_attributes: those that it writes, of an argument, with what it reads of them for that alone.
        modules: the modules that it imports.
    """

    globals: frozenset[str]
    written: frozenset[str]
    attributes: frozenset[str]
    written_attributes: frozenset[str]
    modules: frozenset[str]


@lru_cache(maxsize=1 << 14)
def uses_of(code: CodeType) -> Uses:
    """Return what a function's code uses, and that of the functions in it."""
    read, known, attributes, modules = set[str](), set[str](), set[str](), set[str]()
    written, written_attributes = set[str](), set[str]()
    for one in _all(code):
        steps = [step for step in dis.get_instructions(one) if step.opname not in _MOVES]
        kinds = "".join(_LETTERS.get(step.opname, ".") for step in steps)
        alone = set[int]()
        for match in _WRITES.finditer(kinds):
            alone |= _alone(steps, match, written, written_attributes)
        for index, step in enumerate(steps):
            if kinds[index] == "n":
                known.add(step.argval)
                read |= set() if index in alone else {step.argval}
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
                attributes |= set() if index in alone else {step.argval}
            elif step.opname == "IMPORT_NAME":
                modules.add(step.argval)
            elif step.opname == "LOAD_CONST" and isinstance(step.argval, str):
                # As getattr may be told.
                attributes.add(step.argval)
    return Uses(
        frozenset(known), frozenset(written - read), frozenset(attributes), frozenset(written_attributes),
        frozenset(modules),
    )  # fmt: skip


def _alone(
    steps: list[dis.Instruction], match: re.Match[str], written: set[str], written_attributes: set[str]
) -> set[int]:
    """Note what a run of steps writes, and return which of them read for that alone."""
    begin, end = match.span()
    first, last = steps[begin], steps[end - 1]
    if match[0][0] == "f":
        same = steps[begin + 1].argval == last.argval and "=" in steps[end - 2].argrepr
        written_attributes |= {last.argval} if same else set()
        return {begin + 1} if same else set()
    given = sum(kind in "cfn" for kind in match[0][2:])
    is_append = match[0][1] == "a" and steps[begin + 1].argval in _APPENDING and steps[end - 2].arg == given
    is_same = match[0][-1] == "N" and first.argval == last.argval
    if is_append or is_same or match[0][-1] == "S":
        written.add(first.argval)
        return {begin, begin + 1} if is_append else {begin}
    return set()


def _all(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and the codes of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all(constant)
