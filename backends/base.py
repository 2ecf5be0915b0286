"""What every device offers to the training loop. The loop in train.py uses this and knows no device."""

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
    """What a device is to execute, before its batch plan is made.

    Attributes:
        network: on the CPU.
        image_size: side of the square images.
        in_channels: of the images.
        training_images: in an epoch.
        saved_bytes_per_image: activations kept for backward, in plain execution.
        batch: the section of the configuration.
        optimizer: the section of the configuration.
    """

    network: nn.Module
    image_size: int
    in_channels: int
    training_images: int
    saved_bytes_per_image: int
    batch: BatchConfig
    optimizer: OptimizerConfig


class Backend(Protocol):
    """One process's view of the devices.

    Attributes:
        name: "cpu", "cuda:0", "ipu", ...
        reason: why this device was chosen, in words.
        precision: of the computation, in words.
        replicas: copies of the model over all processes; known once max_micro_batch_size has been asked.
        local_replicas: those of this process.
        device_iterations: weight updates in one call of the device.
        is_primary: whether this process writes files and prints.
        can_share_statistics: whether replicas can share batch-norm statistics.
        will_compile: whether the next train_step compiles first, which takes as long as it does once.
        runs_hooks: whether the network runs as Python code, so that hooks on its modules see what passes.
        refusals: why the run is estimated not to fit, each with ways out; after `setup`.
    """

    name: str
    reason: str
    precision: str
    replicas: int
    local_replicas: int
    device_iterations: int
    is_primary: bool
    can_share_statistics: bool
    runs_hooks: bool
    will_compile: bool

    @property
    def refusals(self) -> Sequence[str]: ...

    def choose_operations(self, network: nn.Module) -> None:
        """Makes the network compute with operations of this device, before anything of it is measured."""

    def max_micro_batch_size(self, workload: Workload) -> int:
        """Images whose forward and backward fit the memory. Asked once, before `setup`: on devices with pipelines it
        settles the stages, and with them the number of replicas."""

    def details(self) -> Dict[str, str]:
        """What else a user should know before the first step, by aspect; after `setup`."""

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

        What is random in it comes from `classifier.draws`, see training.draws: any way of executing it draws the same.

        Raises:
            NonFiniteLossError: a gradient is not finite; no weight was changed.
        """

    def eval_step(self, batch: Batch) -> StepSums:
        """Forward with the evaluation form of the norms; the sums are this process's."""

    def weights(self) -> Dict[str, torch.Tensor]:
        """The network's state by name as it is now, wherever it lives; not to be changed, and valid until the next
        train_step. Averages of the weights are made from it (training.averaging)."""

    def evaluating_with(self, weights: Mapping[str, torch.Tensor]) -> ContextManager[None]:
        """Inside, eval_step computes with this state of the network; afterwards the trained one is back to the bit.
        Every process must enter it with equal weights."""

    def total(self, sums: StepSums) -> StepSums:
        """The sums over all processes, as Python numbers. Every process must call it."""

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        """`values`, of equal shape in every process, of all processes in order. Every process must call it."""

    def agree(self, flag: int) -> int:
        """The largest `flag` of any process. Every process must call it."""

    def state(self) -> Dict[str, Any]:
        """{"model": ..., "optimizer": ...}, on the CPU, the same on every device. Every process must call it."""

    def load_state(self, state: Dict[str, Any]) -> None:
        """Continues from `state()` of any device."""

    def close(self) -> None:
        """Leaves the process group."""
