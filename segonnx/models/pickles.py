"""A look at a pickle before it is loaded: nothing in it is built.

torch's own unpickler runs no code, but Python hashes tuples by recursion in C. Tuples in tuples, a hundred thousand
deep or shared a hundred times over, end the process, or keep it busy for ever. And two of the functions that it calls
take what they are given: ``bytearray`` a size, ``_codecs.encode`` a codec whose time grows with the square of a text.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any, NamedTuple

MAX_DEPTH = 100
MAX_SIZE = 10**5
"""The most objects that a tuple may hold, with those in the tuples in it, shared ones counted anew each time."""

CODECS = ("latin1", "latin-1")
"""What Python writes bytes with where a pickle's protocol has none."""

_ENCODE = ("_codecs encode", "codecs encode")
_BYTEARRAY = ("builtins bytearray", "__builtin__ bytearray")
_SHORT = 64


class _Item(NamedTuple):
    """What is known of an object on the unpickler's stack.

    Attributes:
        depth: of a tuple.
        size: how many objects it holds.
        value: a function's name, a short text, a number, or the values of a short tuple; None where it's another.
    """

    depth: int
    size: int
    value: Any = None


_LEAF = _Item(0, 1)


def check(file: IO[bytes]) -> None:
    """Read one pickle from ``file``, and stop at tuples that can't be hashed and calls that take all memory or time.

    Raises:
        ValueError: there is one, or the pickle is damaged.
        IndexError, KeyError: the pickle takes what isn't there.
    """
    stack: list[_Item] = []
    memo: dict[object, _Item] = {}
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
            if code.name == "REDUCE":
                _require_modest(*items)
            stack += [_made(code.name, argument, items)] * len(code.stack_after)


def _made(name: str, argument: object, items: list[_Item]) -> _Item:
    """What an operation leaves on the stack."""
    if "TUPLE" in name:
        return _tuple(items)
    known = isinstance(argument, int) or (isinstance(argument, str) and len(argument) <= _SHORT)
    return _LEAF._replace(value=argument) if known else _LEAF


def _tuple(items: list[_Item]) -> _Item:
    depth, size = 1 + max((item.depth for item in items), default=0), 1 + sum(item.size for item in items)
    if depth > MAX_DEPTH or size > MAX_SIZE:
        raise ValueError("it holds tuples in tuples without end")
    return _Item(depth, size, tuple(item.value for item in reversed(items)) if len(items) <= 2 else None)


def _require_modest(arguments: _Item, function: _Item) -> None:
    """Refuse a call whose result may be larger than what it is given, or take longer to make."""
    given = arguments.value if isinstance(arguments.value, tuple) else ()
    if function.value in _ENCODE and (len(given) != 2 or given[1] not in CODECS):
        raise ValueError(f"it encodes a text with another codec than {CODECS[0]}")
    if function.value in _BYTEARRAY and any(isinstance(value, int) for value in given):
        raise ValueError("it asks for bytes by their number")
