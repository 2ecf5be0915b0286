"""Assertions of traced code, which torch.fx takes for control flow."""

from __future__ import annotations

import dis
from types import FrameType
from typing import List


def is_asserted(frame: FrameType) -> bool:
    """Whether a frame is asking for the truth of a value in order to assert it, alone or as one of `a and b`.

    In `assert a or b` the first need not hold, and in `assert x in (a, b)` none of the comparisons.
    """
    instructions = list(dis.get_instructions(frame.f_code))
    at = [instruction.offset for instruction in instructions].index(frame.f_lasti)
    if instructions[at].opname == "TO_BOOL":
        at += 1
    name = instructions[at].opname
    if not name.startswith("POP_JUMP"):
        return False
    if name.endswith("IF_TRUE"):
        return _raises(instructions[at + 1 : at + 2])
    return _raises([other for other in instructions if other.offset == instructions[at].argval])


def _raises(instructions: List[dis.Instruction]) -> bool:
    """Whether an instruction begins to raise an AssertionError, in the words of Python 3.8 to 3.14."""
    return any(one.opname == "LOAD_ASSERTION_ERROR" or "AssertionError" in str(one.argval) for one in instructions)
