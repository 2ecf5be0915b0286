"""Random numbers that depend on a key alone: not on order, processes or any generator's state.

SplitMix64: output i of key k is mix(k + (i + 1) * GOLDEN) modulo 2^64, where mix is a bijection of 64-bit numbers.
Making one takes about a microsecond, where seeding a Mersenne twister takes ten or more, and there is no global state
to disturb. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from __future__ import annotations

from typing import Tuple, Union

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB


def mix(state: int) -> int:
    """Return the 64-bit number that SplitMix64 gives for `state`."""
    state = ((state ^ (state >> 30)) * FIRST_FACTOR) & MASK
    state = ((state ^ (state >> 27)) * SECOND_FACTOR) & MASK
    return state ^ (state >> 31)


def mix_all(state: np.ndarray) -> np.ndarray:
    """Return mix of each element of `state`, (N,) uint64: such arrays wrap modulo 2^64, which is what is wanted."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST_FACTOR)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND_FACTOR)
    return state ^ (state >> np.uint64(31))


class KeyedRandom:
    """A stream of random numbers for one key, e.g. (seed, epoch, index).

    Each word of the key is mixed in with a bijection, so keys that differ in their last word alone never share a state.

    Args:
        key: whole numbers in [0, 2^64), in order of significance.

    Raises:
        ValueError: a word of the key is negative or needs more than 64 bits.
    """

    def __init__(self, *key: int) -> None:
        state = 0
        for word in key:
            if not 0 <= word <= MASK:
                raise ValueError(f"key {key} holds {word}; each word must be in [0, 2^64)")
            state = mix(((state ^ word) + GOLDEN) & MASK)
        self.state = state

    def bits(self) -> int:
        """Return a whole number, uniform in [0, 2^64)."""
        self.state = (self.state + GOLDEN) & MASK
        return mix(self.state)

    def integer(self, stop: int) -> int:
        """Return a whole number, uniform in [0, stop), as floor(bits * stop / 2^64); its bias is below stop / 2^64."""
        return (self.bits() * stop) >> 64

    def uniform(self, low: float, high: float) -> float:
        """Return a number uniform in [low, high), from 53 random bits."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def bytes(self, count: int) -> np.ndarray:
        """Return `count` uniform bytes, shape (count,), uint8: the stream's next outputs, little end first."""
        words = (count + 7) // 8
        state = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(self.state)
        self.state = (self.state + words * GOLDEN) & MASK
        return mix_all(state).astype("<u8", copy=False).view(np.uint8)[:count]


class KeyedRandoms:
    """The streams KeyedRandom(*key, index) of many indices at once.

    Args:
        key: the words that all share.
        indices: (N,) the last word of each.
    """

    def __init__(self, key: Tuple[int, ...], indices: np.ndarray) -> None:
        self.state = mix_all((np.uint64(KeyedRandom(*key).state) ^ indices.astype(np.uint64)) + np.uint64(GOLDEN))

    def bits(self) -> np.ndarray:
        """Return each stream's next whole number, uniform in [0, 2^64). Shape (N,), uint64."""
        self.state = self.state + np.uint64(GOLDEN)
        return mix_all(self.state)

    def uniform(self) -> np.ndarray:
        """Return each stream's next number, uniform in [0, 1), from 53 random bits. Shape (N,), float64."""
        return (self.bits() >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integer(self, stop: Union[int, np.ndarray]) -> np.ndarray:
        """Return each stream's next whole number, uniform in [0, stop), as floor(uniform * stop). Shape (N,), int64."""
        return (self.uniform() * stop).astype(np.int64)
