"""The device's random generator, apart from the host's."""
from __future__ import annotations

import contextlib
import secrets
from typing import Iterator, List, Optional

import torch


class DeviceGenerator:
    """Random numbers on the device: running a model neither reads nor advances torch's generator on the host.

    Args:
        seed: the option randomSeed; None: another one each time.
    """

    def __init__(self, seed: Optional[int]) -> None:
        self._seed = secrets.randbelow(1 << 31) if seed is None else seed
        self._state = torch.Generator().manual_seed(self._seed).get_state()

    @contextlib.contextmanager
    def active(self, keep: bool = True) -> Iterator[None]:
        """While entered, torch draws from the device's generator; keep=False forgets what was drawn."""
        host = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            if keep:
                self._state = torch.get_rng_state()
            torch.set_rng_state(host)

    def read(self) -> List[int]:
        """The seed and the state after it, as whole numbers."""
        return [self._seed, *self._state.tolist()]

    def write(self, state: List[int]) -> None:
        """Take over a state that read() made, or a seed alone."""
        self._seed = state[0]
        if len(state) > 1:
            self._state = torch.tensor(state[1:], dtype=torch.uint8)
        else:
            self._state = torch.Generator().manual_seed(self._seed).get_state()
