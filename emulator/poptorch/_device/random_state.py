"""The device's random generator, apart from the host's."""

from __future__ import annotations

import contextlib
import secrets
from typing import Iterator, List, Optional

import torch

from .._logging import logger


class DeviceGenerator:
    """Random numbers on the device: running a model neither reads nor advances torch's generator on the host.

    Args:
        seed: the option randomSeed; None: another one each time.
    """

    def __init__(self, seed: Optional[int]) -> None:
        self._seed = secrets.randbelow(1 << 31) if seed is None else seed
        self._state = torch.Generator().manual_seed(self._seed).get_state()
        self._has_drawn = False

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
                self._has_drawn = True
            torch.set_rng_state(host)

    def read(self) -> List[int]:
        """Return the seed, and once the device has run the state too, as whole numbers."""
        if not self._has_drawn:
            return [self._seed]
        logger.debug("Reading random seed")
        logger.debug("Reading RNG state")
        return [self._seed, *self._state.tolist()]

    def write(self, state: List[int]) -> None:
        """Take over a state that read() made, or a seed alone."""
        self._seed = state[0]
        self._has_drawn = len(state) > 1
        if self._has_drawn:
            self._state = torch.tensor(state[1:], dtype=torch.uint8)
        else:
            self._state = torch.Generator().manual_seed(self._seed).get_state()
        self.sent()

    def sent(self) -> None:
        """Log that seed and state reached the device."""
        logger.debug("Setting random seed to %d", self._seed)
        if self._has_drawn:
            logger.debug("Setting RNG state")
