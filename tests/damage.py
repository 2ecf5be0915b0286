"""Damage to files, drawn from a seed: what disks, transfers and attackers do to them, and what parsers get wrong."""

from __future__ import annotations

import random
import struct
import zlib

# Where counts, sizes and offsets overflow.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged(content: bytes, seed: int, other: bytes = b"") -> bytes:
    """Return one to four changes of a file; half of them in its first 100 bytes, where headers are.

    Args:
        content: of a file.
        seed: chooses the damage.
        other: a second file, of which pieces may take the place of the first one's.
    """
    chance = random.Random(seed)
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), chance.choice((100, len(data)))) or 1) if data else 0
        kind = chance.choice(("bit", "byte", "number", "cut", "leave out", "repeat", "insert", "splice", "zeros"))
        length = chance.choice((1, 4, 30, max(1, len(data) // 3)))
        if kind == "bit" and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "byte" and data:
            data[at] = chance.randrange(256)
        elif kind == "number":
            code = chance.choice(("B", "<H", ">H", "<I", ">I"))
            size = struct.calcsize(code)
            data[at : at + size] = struct.pack(code, chance.choice(NUMBERS) & (256**size - 1))
        elif kind == "cut":
            del data[chance.randrange(len(data) + 1) :]
        elif kind == "leave out":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = chance.randbytes(length) if hasattr(chance, "randbytes") else bytes(length)
        elif kind == "splice":
            start = chance.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        elif kind == "zeros":
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def with_right_sums(png: bytes) -> bytes:
    """Return the chunks of a damaged PNG file with their check sums made to match: the damage gets past them."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out) + png[at:]
