"""What every device offers to the training loop. The loop in train.py uses this and knows no device."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Protocol, Set, Tuple

import torch

from configs.batch import BatchPlan
from configs.learning_sections import OptimizerConfig
from training.classifier import Classifier
from training.metrics import StepSums

Batch = Tuple[torch.Tensor, torch.Tensor]  # uint8 images (B, C, H, W), integer labels (B,)


class Backend(Protocol):
    """One process's view of the devices.

    Attributes:
        name: "cpu", "cuda:0", ...
        reason: why this device was chosen, for people.
        replicas: copies of the model over all processes.
        local_replicas: those of this process.
        is_primary: whether this process writes files and prints.
        can_share_statistics: whether replicas can share batch-norm statistics.
    """

    name: str
    reason: str
    replicas: int
    local_replicas: int
    is_primary: bool
    can_share_statistics: bool

    def max_micro_batch_size(self, saved_bytes_per_image: int) -> int:
        """Images whose forward and backward fit the memory that is free now."""

    def norm_group(self, plan: BatchPlan) -> Any:
        """The process group over which batch norm shares its statistics; None for none."""

    def setup(
        self, classifier: Classifier, plan: BatchPlan, optimizer: OptimizerConfig, undecayed: Set[str], seed: int
    ) -> None:
        """Places the classifier on the device and builds its optimizer.

        Args:
            undecayed: names of the network's parameters that take no weight decay.
            seed: keys the order of images and every draw during training.
        """

    def training_batches(self, dataset: Any, epoch: int, first_step: int, workers: int) -> Iterable[Batch]:
        """One batch per call of the device: this process's images from weight update `first_step` of the epoch on."""

    def evaluation_batches(self, dataset: Any, workers: int) -> Iterable[Batch]:
        """This process's share of all images, each once over all processes."""

    def train_step(self, batch: Batch, step: int, learning_rate: float) -> StepSums:
        """Forward, backward and weight update number `step`; the sums are this process's.

        Raises:
            NonFiniteLossError: a gradient is not finite; no weight was changed.
        """

    def eval_step(self, batch: Batch) -> StepSums:
        """Forward with the evaluation form of the norms; the sums are this process's."""

    def total(self, sums: StepSums) -> StepSums:
        """The sums over all processes, as Python numbers. Every process must call it."""

    def agree(self, flag: int) -> int:
        """The largest `flag` of any process. Every process must call it."""

    def state(self) -> Dict[str, Any]:
        """{"model": ..., "optimizer": ...}, on the CPU, the same on every device. Every process must call it."""

    def load_state(self, state: Dict[str, Any]) -> None:
        """Continues from `state()` of any device."""

    def close(self) -> None:
        """Leaves the process group."""
