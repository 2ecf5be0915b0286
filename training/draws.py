"""Everything that is random in one weight update, as a table with one row for each image of the global batch.

The table is a function of (seed, step) alone and is made on the host. A device is given the rows of its images as one
more input, so the same images are mixed and the same activations dropped however a global batch is cut up, on every
device, and after any resumption; no random state is saved. What a backend does, once for each weight update:

    loads     its images and the `partners` images before them (training.order.TrainingBatches takes `partners`)
    draws     classifier.draws.rows(seed, step, plan.global_batch_size, start, stop), its part of the table
    runs      classifier(images, labels, rows) for each micro-batch: n rows, and the images and labels of these rows
              with the `partners` ones in front (n + partners)

Where `columns` is 0 nothing is random, and classifier(images, labels) is all.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Protocol

from training.mixing import COLUMNS, PARTNERS, Mixing
from training.order import step_key


class DropLayer(Protocol):
    """A layer that multiplies each image's values by random factors, 0 or 1 / (1 - rate).

    Attributes:
        rate: probability of 0.
        columns: factors for each image.
        factors: (images, columns) for the next forward pass; None: the layer draws its own.
    """

    rate: float
    columns: int
    factors: Optional[Tensor]


@dataclass(frozen=True)
class StepDraws:
    """What a network and its configuration need drawn for each image.

    Attributes:
        mixing: how images are mixed; None for not at all.
        drops: the network's layers with dropout or stochastic depth, in the order of their columns.
    """

    mixing: Optional[Mixing] = None
    drops: Tuple[DropLayer, ...] = ()

    @property
    def partners(self) -> int:
        """Images in front of its own that a part of a global batch needs."""
        return PARTNERS if self.mixing is not None else 0

    @property
    def mixing_columns(self) -> int:
        """The table's first columns, which are those of training.mixing."""
        return COLUMNS if self.mixing is not None else 0

    @property
    def columns(self) -> int:
        """Width of the table."""
        return self.mixing_columns + sum(layer.columns for layer in self.drops)

    def rows(self, seed: int, step: int, global_batch_size: int, start: int, stop: int) -> Tensor:
        """Rows start to stop of the table of one weight update.

        All of it is drawn, in float64 where a distribution's tail matters: about 5 ms for a million factors.

        Shape: -> (stop - start, columns), float32.
        """
        random = np.random.Generator(np.random.Philox(step_key(seed, step)))
        parts = []
        if self.mixing is not None:
            parts.append(self.mixing.draw(random, global_batch_size).astype(np.float32))
        for layer in self.drops:
            is_kept = random.random((global_batch_size, layer.columns), dtype=np.float32) >= layer.rate
            parts.append(is_kept * np.float32(1.0 / (1.0 - layer.rate)))
        return torch.from_numpy(np.concatenate([part[start:stop] for part in parts], axis=1))

    @contextlib.contextmanager
    def handed_over(self, drawn: Optional[Tensor]) -> Iterator[None]:
        """Inside, each drop layer multiplies by its columns of `drawn`; None: of what it draws itself.

        Afterwards it has none, so that no later forward pass uses them again.
        """
        first = self.mixing_columns
        for layer in self.drops:
            layer.factors = None if drawn is None else drawn[:, first : first + layer.columns]
            first += layer.columns
        try:
            yield
        finally:
            for layer in self.drops:
                layer.factors = None
