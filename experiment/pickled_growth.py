"""How large what a pickle says is to whoever walks through it: told by its instructions, before any of it is made.

A tuple that holds one tuple twice, which holds another twice, has 2^40 entries in 200 bytes of a file. Making it takes
no time, but what hashes, prints or copies it does not end; and a key of a dictionary is hashed while it is read.
"""

from __future__ import annotations

import pickletools
from typing import Any, Dict, Iterator, List, Tuple

MOST_DEPTH = 100
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_FILLING = {"APPEND": 1, "SETITEM": 2}
_FILLING_FROM_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_FILLED = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT"}
_LEAF = ()  # stands for every value that holds no others
_MARK = object()


def refuse_growth(pickled: bytes, most: int) -> None:
    """Refuses a pickle of dictionaries, lists and tuples that would be endless, or far too many.

    Args:
        pickled: read as instructions; none is followed.
        most: entries of one object, counted wherever they are met. Each takes a byte of a file at least, so a file has
            no more than bytes, unless it repeats itself.

    Raises:
        ValueError: there are more of them, one holds itself, they are more than 100 deep in one another, or it is not a
            pickle.
    """
    counted: Dict[int, Tuple[int, int]] = {}

    def count(item: Any, depth: int) -> Tuple[int, int]:
        """Entries in `item`, and how deep they are, which is `depth` in what holds it."""
        if item is _LEAF:
            return 1, 0
        if id(item) not in counted and depth <= MOST_DEPTH:
            held = [count(entry, depth + 1) for entry in item]
            counted[id(item)] = 1 + sum(entries for entries, _ in held), 1 + max((deep for _, deep in held), default=0)
        if depth > MOST_DEPTH or counted[id(item)][1] > MOST_DEPTH:
            raise ValueError(
                f"its entries contain themselves, or are nested more than {MOST_DEPTH} deep in one another"
            )
        return counted[id(item)]

    try:
        made = list(_containers(pickled))
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle takes more than it has put down") from error
    for container in made:
        if count(container, 0)[0] > most:
            raise ValueError(f"its entries repeat themselves to more than {most:,}, the bytes of the file")


def _containers(pickled: bytes) -> Iterator[List[Any]]:
    """Yield the entries of each container, call and object that a pickle describes, in the order of their making.

    The state that an object is given (BUILD) is a container of its own, and none of the object's entries: no one walks
    through it, and settings hold what they belong to.
    """
    stack: List[Any] = []
    memo: Dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in _PUT or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _FILLING or name in _FILLING_FROM_MARK:
            entries = _pop(stack, _FILLING[name]) if name in _FILLING else _pop_to_mark(stack)
            if isinstance(stack[-1], list):
                stack[-1].extend(entries)
        elif name not in ("PROTO", "FRAME", "STOP"):
            taken = opcode.stack_before  # names of kinds; from a mark on, whatever lies above it
            is_marked = pickletools.markobject in taken
            held = _pop_to_mark(stack) if is_marked else []
            held += _pop(stack, taken.index(pickletools.markobject) if is_marked else len(taken))
            if name == "BUILD":
                stack.append(held[0])
            elif opcode.stack_after:
                stack.append(held if held or name in _FILLED else _LEAF)
                if stack[-1] is not _LEAF:
                    yield stack[-1]


def _pop(stack: List[Any], number: int) -> List[Any]:
    if len(stack) < number or _MARK in stack[len(stack) - number :]:
        raise IndexError
    popped = stack[len(stack) - number :]
    del stack[len(stack) - number :]
    return popped


def _pop_to_mark(stack: List[Any]) -> List[Any]:
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is _MARK:
            popped = stack[place + 1 :]
            del stack[place:]
            return popped
    raise IndexError
