"""What every kind of device offers: a `Device` settles a `Workload`, and the `Placement` starts a `Session`.

The loop in train.py uses these and knows no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ContextManager, Dict, Iterable, List, Mapping, Protocol, Sequence, Set, Tuple

import torch
from torch import nn

from configs.batch import BatchPlan
from configs.schema import BatchConfig
from configs.schema.learning import OptimizerConfig
from training.classifier import Classifier
from training.metrics import StepSums

Batch = Tuple[torch.Tensor, torch.Tensor]  # uint8 images (B, C, H, W), integer labels (B,)


@dataclass(frozen=True)
class Workload:
    """What a device is to execute.

    Attributes:
        network: on the CPU, computing with the operations that the device chose for it.
        uses_batch_norm: whether its statistics depend on batch.norm_batch_size.
        image_size: side of the square images.
        in_channels: of the images.
        training_images: in an epoch.
        saved_bytes_per_image: activations kept for backward, in plain execution.
        batch: the section of the configuration.
        optimizer: the section of the configuration.
    """

    network: nn.Module
    uses_batch_norm: bool
    image_size: int
    in_channels: int
    training_images: int
    saved_bytes_per_image: int
    batch: BatchConfig
    optimizer: OptimizerConfig


class Device(Protocol):
    """One process's view of the devices, before there is anything to execute.

    Attributes:
        name: "cpu", "cuda:0", "ipu", ...
        reason: why this device was chosen, in words.
        precision: of the computation, in words.
        is_primary: whether this process writes files and prints.
        runs_hooks: whether a network runs as Python code, so that hooks on its modules see what passes.
        runs_kernels: whether layers may run fused kernels, so that it is of interest what those would keep in memory.
    """

    name: str
    reason: str
    precision: str
    is_primary: bool
    runs_hooks: bool
    runs_kernels: bool

    def choose_operations(self, network: nn.Module) -> None:
        """Make the network compute with operations of this device, before anything of it is measured."""

    def settle(self, workload: Workload) -> Placement:
        """Decide all that can be decided before anything is executed: replicas, the batch plan, pipeline stages.

        Every process must call it.

        Raises:
            ConfigError, DeviceError: what cannot be honoured, with the rule and a way out.
        """

    def close(self) -> None:
        """Leave the processes that the device connects; after its session is closed."""


class Placement(Protocol):
    """A workload settled on a device. Nothing is executed yet: here a dry run stops.

    Attributes:
        plan: the batch arithmetic.
        details: what else a user should know before the first step, by aspect.
        refusals: why the run is estimated not to fit, each with ways out. An estimate: the run itself may be tried.
    """

    @property
    def plan(self) -> BatchPlan: ...

    @property
    def details(self) -> Dict[str, str]: ...

    @property
    def refusals(self) -> Sequence[str]: ...

    def start(self, classifier: Classifier, undecayed: Set[str], seed: int) -> Session:
        """Place the classifier on the device and builds its optimizer. Every process must call it.

        Args:
            classifier: around the workload's network.
            undecayed: names of the network's parameters that take no weight decay.
            seed: keys the order of images and every draw during training.
        """


class Session(Protocol):
    """A classifier at work on its device, together with those of all other processes."""

    @property
    def will_compile(self) -> bool:
        """Whether the next train_step compiles first, which takes as long as it does once."""

    def training_batches(self, dataset: Any, epoch: int, first_step: int, workers: int) -> Iterable[Batch]:
        """Return a batch per call of the device: this process's images from update `first_step` of the epoch on."""

    def evaluation_batches(self, dataset: Any, workers: int) -> Iterable[Batch]:
        """Return this process's share of all images, each once over all processes."""

    def train_step(self, batch: Batch, step: int, learning_rate: float) -> StepSums:
        """Forward, backward and weight update number `step`; the sums are this process's.

        What is random in it comes from `classifier.draws`, see training.draws: any way of executing it draws the same.

        Raises:
            NonFiniteLossError: a gradient is not finite; no weight was changed.
        """

    def eval_step(self, batch: Batch) -> StepSums:
        """Forward with the evaluation form of the norms; the sums are this process's."""

    def weights(self) -> Dict[str, torch.Tensor]:
        """Return the network's state by name as it is now, wherever it lives; averages of the weights are made from it.

        It must not be changed, and is valid until the next train_step.
        """

    def evaluating_with(self, weights: Mapping[str, torch.Tensor]) -> ContextManager[None]:
        """Let eval_step compute with this state of the network; afterwards the trained one is back to the bit.

        Every process must enter it with equal weights.
        """

    def total(self, sums: StepSums) -> StepSums:
        """Return the sums over all processes, as Python numbers. Every process must call it."""

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        """`values`, of equal shape in every process, of all processes in order. Every process must call it."""

    def agree(self, flag: int) -> int:
        """Return the largest `flag` of any process. Every process must call it."""

    def state(self) -> Dict[str, Any]:
        """{"model": ..., "optimizer": ...}, on the CPU, the same on every device. Every process must call it."""

    def load_state(self, state: Dict[str, Any], is_updated: bool = True) -> None:
        """Continue from `state()` of any device; `is_updated`: whether that was after a first update."""

    def close(self) -> None:
        """Let go of the device."""
