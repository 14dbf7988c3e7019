"""A look at a pickle before it is loaded: nothing in it is built.

torch's own unpickler runs no code, but Python hashes tuples by recursion in C. Tuples in tuples, a hundred thousand
deep or shared a hundred times over, end the process, or keep it busy for ever.
"""

from __future__ import annotations

import pickletools
from typing import IO

MAX_DEPTH = 100
MAX_SIZE = 10**5
"""The most objects that a tuple may hold, with those in the tuples in it, shared ones counted anew each time."""

_LEAF = (0, 1)


def check(file: IO[bytes]) -> None:
    """Read one pickle from ``file``, and stop at tuples that can't be hashed.

    Raises:
        ValueError: there is one, or the pickle is damaged.
        IndexError, KeyError: the pickle takes what isn't there.
    """
    stack: list[tuple[int, int]] = []  # depth and size of what the unpickler's stack holds
    memo: dict[object, tuple[int, int]] = {}
    marks: list[int] = []
    for code, argument, _ in pickletools.genops(file):
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        else:
            taken = code.stack_before
            count = len(taken)
            if pickletools.markobject in taken:
                count = len(stack) - marks.pop() + taken.index(pickletools.markobject)
            items = [stack.pop() for _ in range(count)]
            made = _tuple(items) if "TUPLE" in code.name else _LEAF
            stack += [made] * len(code.stack_after)


def _tuple(items: list[tuple[int, int]]) -> tuple[int, int]:
    depth, size = 1 + max((item[0] for item in items), default=0), 1 + sum(item[1] for item in items)
    if depth > MAX_DEPTH or size > MAX_SIZE:
        raise ValueError("it holds tuples in tuples without end")
    return depth, size
