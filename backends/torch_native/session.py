"""Training and evaluation on a CPU or a GPU through plain torch; several processes through DistributedDataParallel."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from backends.base import Batch
from backends.image_loader import build_loader
from configs.batch import BatchPlan
from configs.schema.device import DeviceConfig
from configs.schema.learning import OptimizerConfig
from normact import share_statistics
from training.classifier import Classifier
from training.clipping import clip_gradients
from training.metrics import StepSums
from training.nonfinite import NonFiniteLossError, are_finite
from training.optimizer import build_optimizer, load_optimizer_state, set_learning_rate
from training.order import EvaluationBatches, TrainingBatches
from training.weights import load_model_state

# Batch norm's running statistics are averaged after every update, see _average_buffers. torch 2.13 renamed this.
_BUFFERS_IN_FORWARD = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True)
class TorchPlacement:
    """A workload settled on a CPU or GPU. See `backends.base.Placement`.

    Attributes:
        device: of this process.
        config: section `device`.
        precision: "float32" or "bfloat16".
        plan: the batch arithmetic.
        optimizer: the section of the configuration.
        details: there are none.
        refusals: none, since nothing is estimated: what does not fit fails.
    """

    device: torch.device
    config: DeviceConfig
    precision: str
    plan: BatchPlan
    optimizer: OptimizerConfig
    details: Dict[str, str] = field(default_factory=dict)
    refusals: Tuple[str, ...] = ()

    def start(self, classifier: Classifier, undecayed: Set[str], seed: int) -> TorchSession:
        return TorchSession(self, classifier, undecayed, seed)


class TorchSession:
    """A classifier at work on a CPU or CUDA device. See `backends.base.Session` for the meaning of the methods."""

    def __init__(self, placement: TorchPlacement, classifier: Classifier, undecayed: Set[str], seed: int) -> None:
        config = placement.config
        self._device, self._precision = placement.device, placement.precision
        self._plan, self._seed, self._clip_norm = placement.plan, seed, placement.optimizer.clip_norm
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._joined = dist.is_initialized()
        self._process = dist.get_rank() if self._joined else 0
        # Triton's kernels are compiled at first use
        self.will_compile = config.compile or self._device.type == "cuda"
        share_statistics(classifier.network, _norm_group(self._plan), self._plan.gradient_accumulation)
        self._classifier = classifier.to(self._device)
        self._classifier.to(memory_format=self._layout)  # type: ignore[call-overload]  # missing in torch's annotations
        if config.compile:
            self._classifier.network.compile()
        self._optimizer = build_optimizer(placement.optimizer, classifier.network, undecayed)
        self._parallel: Optional[DistributedDataParallel] = None
        if self._joined:
            options: Dict[str, Any] = {_BUFFERS_IN_FORWARD: False, "gradient_as_bucket_view": True}
            self._parallel = DistributedDataParallel(classifier, **options)

    def training_batches(self, dataset: Any, epoch: int, first_step: int, workers: int) -> Iterable[Batch]:
        partners = self._classifier.draws.partners
        batches = TrainingBatches(
            len(dataset), self._plan, self._process, self._seed, epoch, first_step, partners, dataset.parts
        )
        return self._loader(dataset, batches, workers)

    def evaluation_batches(self, dataset: Any, workers: int) -> Iterable[Batch]:
        batches = EvaluationBatches(len(dataset), self._plan.micro_batch_size, self._process, self._plan.replicas)
        return self._loader(dataset, batches, workers)

    def train_step(self, batch: Batch, step: int, learning_rate: float) -> StepSums:
        self._classifier.train()
        model = self._parallel or self._classifier
        images_per_replica = self._plan.micro_batch_size * self._plan.gradient_accumulation
        total = StepSums()
        for images, labels, drawn, is_last in self._micro_batches(batch, step):
            with self._gradients_reduced(is_last):
                with self._autocast():
                    outputs = model(images, labels, drawn)
                # The mean over the global batch: DistributedDataParallel averages over the replicas.
                (outputs[0] / images_per_replica).backward()
            total = total + StepSums.from_step(outputs)
        self._refuse_nonfinite_gradients(total, step, learning_rate)
        if self._clip_norm is not None:
            norm = clip_gradients(self._classifier.parameters(), self._clip_norm)
            if not torch.isfinite(norm):  # of finite gradients whose squares overflow: clipped, they are zeros
                raise NonFiniteLossError(step, learning_rate, float(total.loss_sum) / float(total.images))
            total = total + StepSums(gradient_norm=norm.double() / self._plan.replicas)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average_buffers()
        self.will_compile = False
        return total

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> StepSums:
        self._classifier.eval()
        images, labels = self._place(*batch)
        with self._autocast():
            return StepSums.from_step(self._classifier(images, labels))

    def weights(self) -> Dict[str, torch.Tensor]:
        return self._classifier.network.state_dict()

    @contextlib.contextmanager
    def evaluating_with(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        own = self.weights()
        kept = {name: tensor.clone() for name, tensor in own.items()}
        try:
            _copy_all(weights, own)
            yield
        finally:
            _copy_all(kept, own)

    def total(self, sums: StepSums) -> StepSums:
        stacked = sums.stacked().to(self._device)
        if self._joined:
            dist.all_reduce(stacked)
        return StepSums.from_stacked(stacked)

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        if not self._joined:
            return [values]
        local = values.to(self._device)
        gathered = [torch.empty_like(local) for _ in range(self._plan.replicas)]
        dist.all_gather(gathered, local)
        return gathered

    def agree(self, flag: int) -> int:
        if not self._joined:
            return flag
        value = torch.tensor(flag, device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def state(self) -> Dict[str, Any]:
        return {
            "model": _to_cpu(self._classifier.network.state_dict()),
            "optimizer": _to_cpu(self._optimizer.state_dict()),
        }

    def load_state(self, state: Dict[str, Any], is_updated: bool = True) -> None:
        load_model_state(self._classifier.network, state["model"])
        load_optimizer_state(self._optimizer, state["optimizer"], is_updated)

    def close(self) -> None:
        self._parallel = None  # it holds the group

    def _loader(self, dataset: Dataset, batches: Any, workers: int) -> DataLoader:
        return build_loader(dataset, batches, workers, pin_memory=self._device.type == "cuda")

    def _micro_batches(
        self, batch: Batch, step: int
    ) -> Iterator[Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor], bool]]:
        """Yield images and labels with those that they are mixed with in front, what is drawn for them, and is_last."""
        images, labels = self._place(*batch)
        draws, plan = self._classifier.draws, self._plan
        drawn: Optional[torch.Tensor] = None
        if draws.columns:
            first = self._process * plan.local_batch_size
            drawn = draws.rows(self._seed, step, plan.global_batch_size, first, first + plan.local_batch_size)
            drawn = drawn.to(self._device, non_blocking=True)
        for start in range(0, plan.local_batch_size, plan.micro_batch_size):
            stop = start + plan.micro_batch_size
            part = slice(start, stop + draws.partners)
            rows = None if drawn is None else drawn[start:stop]
            yield images[part], labels[part], rows, stop == plan.local_batch_size

    def _place(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        images = images.to(self._device, non_blocking=True).contiguous(memory_format=self._layout)
        return images, labels.to(self._device, non_blocking=True)

    def _autocast(self) -> ContextManager[Any]:
        if self._precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _gradients_reduced(self, is_last: bool) -> ContextManager[Any]:
        """Gradients are summed over the processes once per weight update, with the last micro-batch."""
        return contextlib.nullcontext() if is_last or self._parallel is None else self._parallel.no_sync()

    def _refuse_nonfinite_gradients(self, total: StepSums, step: int, learning_rate: float) -> None:
        # Gradients are equal in all processes by now, so all of them raise together; a non-finite loss shows in them.
        gradients = [parameter.grad for parameter in self._classifier.parameters() if parameter.grad is not None]
        if not are_finite(gradients):
            raise NonFiniteLossError(step, learning_rate, float(total.loss_sum) / float(total.images))

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Set batch norm's running statistics to the mean over replicas, so that all evaluate, save and continue alike.

        After every update, so that it makes no difference when a checkpoint is written.
        """
        buffers = [buffer for buffer in self._classifier.network.buffers() if buffer.is_floating_point()]
        if not self._joined or not buffers or self._plan.norm_replicas == self._plan.replicas:
            return
        means = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.all_reduce(means)
        means /= self._plan.replicas
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers])):
            buffer.copy_(mean.view_as(buffer))


def _norm_group(plan: BatchPlan) -> Optional[dist.ProcessGroup]:
    """Return the processes over which batch norm shares its statistics; None for each by itself."""
    if plan.norm_replicas == 1:
        return None
    group, _ = dist.new_subgroups(group_size=plan.norm_replicas)  # consecutive processes
    return group


@torch.no_grad()
def _copy_all(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _to_cpu(value: Any) -> Any:
    """Return the same nested value with every tensor copied to the CPU, in the default layout."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
