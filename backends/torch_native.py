"""CPUs and GPUs through plain torch: one process per device, several processes through torchrun."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from backends.base import Batch, Workload
from backends.errors import DeviceError
from backends.host_memory import available_bytes, keep_freed_memory
from backends.image_loader import build_loader
from backends.machine import has_bfloat16_instructions
from backends.process_group import join, leave
from configs.batch import BatchPlan
from configs.schema.device import DeviceConfig
from configs.schema.learning import OptimizerConfig
from training.classifier import Classifier
from training.metrics import StepSums
from training.nonfinite import NonFiniteLossError, are_finite
from training.optimizer import build_optimizer, load_optimizer_state, set_learning_rate
from training.order import EvaluationBatches, TrainingBatches
from training.weights import load_model_state

LOGGER = logging.getLogger(__name__)
_MEMORY_SHARE = 0.7  # of what is free: the rest is for weights, gradients, temporaries and other programs
# Batch norm's running statistics are averaged after every update, see _average_buffers. torch 2.13 renamed this.
_BUFFERS_IN_FORWARD = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
_PEAK_OVER_SAVED = 1.5  # peak of forward + backward over what is saved for backward: gradients of activations


class TorchBackend:
    """A CPU or CUDA device. See `Backend` for the meaning of the methods."""

    local_replicas = 1
    device_iterations = 1
    can_share_statistics = True
    refusals = ()  # nothing is estimated: what does not fit fails

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        self.runs_hooks = not config.compile
        self.device, self.reason = _choose_device(config.name)
        self.name = str(self.device)
        self.precision = _choose_precision(config.precision, self.device)
        self.will_compile = config.compile or self.device.type == "cuda"  # Triton's kernels are compiled at first use
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.set_device(self.device)
        self._joined = _join_process_group(self.device)
        self.replicas = dist.get_world_size() if self._joined else 1
        self._process = dist.get_rank() if self._joined else 0
        self.is_primary = self._process == 0
        if self.is_primary and self.precision == "bfloat16" and not _has_bfloat16(self.device):
            LOGGER.warning(
                "device.precision bfloat16: %s has no instructions for it and emulates them, several times slower than "
                "float32; use --set device.precision=auto, or float32",
                "this processor" if self.device.type == "cpu" else "this GPU",
            )
        self._parallel: Optional[DistributedDataParallel] = None

    def choose_operations(self, network: nn.Module) -> None:
        pass  # its layers choose between the fused kernels and plain operations themselves

    def max_micro_batch_size(self, workload: Workload) -> int:
        if self.device.type == "cuda":
            free, sharing = torch.cuda.mem_get_info(self.device)[0], 1
        else:
            free, sharing = available_bytes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        fits = int(free * _MEMORY_SHARE / sharing / (workload.saved_bytes_per_image * _PEAK_OVER_SAVED))
        return max(1, _smallest_over_processes(fits, self.device) if self._joined else fits)

    def details(self) -> Dict[str, str]:
        return {}

    def norm_group(self, plan: BatchPlan) -> Optional[dist.ProcessGroup]:
        if plan.norm_replicas == 1:
            return None
        group, _ = dist.new_subgroups(group_size=plan.norm_replicas)  # consecutive processes
        return group

    def setup(
        self, classifier: Classifier, plan: BatchPlan, optimizer: OptimizerConfig, undecayed: Set[str], seed: int
    ) -> None:
        self._plan, self._seed = plan, seed
        layout = torch.channels_last if self._config.channels_last else torch.contiguous_format
        self._classifier = classifier.to(self.device)
        self._classifier.to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's annotations
        if self._config.compile:
            self._classifier.network.compile()
        self._optimizer = build_optimizer(optimizer, classifier.network, undecayed)
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
        batches = EvaluationBatches(len(dataset), self._plan.micro_batch_size, self._process, self.replicas)
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
        stacked = sums.stacked().to(self.device)
        if self._joined:
            dist.all_reduce(stacked)
        return StepSums.from_stacked(stacked)

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        if not self._joined:
            return [values]
        local = values.to(self.device)
        gathered = [torch.empty_like(local) for _ in range(self.replicas)]
        dist.all_gather(gathered, local)
        return gathered

    def agree(self, flag: int) -> int:
        if not self._joined:
            return flag
        value = torch.tensor(flag, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def state(self) -> Dict[str, Any]:
        return {
            "model": _to_cpu(self._classifier.network.state_dict()),
            "optimizer": _to_cpu(self._optimizer.state_dict()),
        }

    def load_state(self, state: Dict[str, Any]) -> None:
        load_model_state(self._classifier.network, state["model"])
        load_optimizer_state(self._optimizer, state["optimizer"])

    def close(self) -> None:
        self._parallel = None  # it holds the group
        if self._joined:
            leave()

    def _loader(self, dataset: Dataset, batches: Any, workers: int) -> DataLoader:
        return build_loader(dataset, batches, workers, pin_memory=self.device.type == "cuda")

    def _micro_batches(
        self, batch: Batch, step: int
    ) -> Iterator[Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor], bool]]:
        """Images and labels with those that they are mixed with in front, what is drawn for them, and is_last."""
        images, labels = self._place(*batch)
        draws, plan = self._classifier.draws, self._plan
        drawn: Optional[torch.Tensor] = None
        if draws.columns:
            first = self._process * plan.local_batch_size
            drawn = draws.rows(self._seed, step, plan.global_batch_size, first, first + plan.local_batch_size)
            drawn = drawn.to(self.device, non_blocking=True)
        for start in range(0, plan.local_batch_size, plan.micro_batch_size):
            stop = start + plan.micro_batch_size
            part = slice(start, stop + draws.partners)
            rows = None if drawn is None else drawn[start:stop]
            yield images[part], labels[part], rows, stop == plan.local_batch_size

    def _place(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        layout = torch.channels_last if self._config.channels_last else torch.contiguous_format
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=layout)
        return images, labels.to(self.device, non_blocking=True)

    def _autocast(self) -> ContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

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
        """Batch norm's running statistics become the mean over the replicas, so that all of them evaluate, save and
        continue with the same. After every update: when a checkpoint is written changes nothing then."""
        buffers = [buffer for buffer in self._classifier.network.buffers() if buffer.is_floating_point()]
        if not self._joined or not buffers or self._plan.norm_replicas == self.replicas:
            return
        means = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.all_reduce(means)
        means /= self.replicas
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers])):
            buffer.copy_(mean.view_as(buffer))


def _choose_device(name: str) -> Tuple[torch.device, str]:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu":
        return torch.device("cpu"), "asked for"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"local process {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; "
                "start at most that many processes, or use device.name cpu"
            )
        return torch.device("cuda", local_rank), "asked for" if name == "cuda" else "a CUDA device is here"
    if name == "cuda":
        raise DeviceError(
            f"device.name cuda: torch {torch.__version__} finds no CUDA device here; use device.name cpu or auto"
        )
    return torch.device("cpu"), "no CUDA device is here"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return has_bfloat16_instructions()


def _choose_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _join_process_group(device: torch.device) -> bool:
    """Joins the group of processes that torchrun started, if it did."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    join("nccl" if device.type == "cuda" else "gloo")
    return True


def _smallest_over_processes(value: int, device: torch.device) -> int:
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


@torch.no_grad()
def _copy_all(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _to_cpu(value: Any) -> Any:
    """The same nested value with every tensor copied to the CPU, in the default layout."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
