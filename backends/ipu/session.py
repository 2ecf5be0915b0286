"""Training and evaluation on IPUs through PopTorch: Graphcore's, or this repository's emulator. See `Session`.

Only this file and attached.py import poptorch or popdist; what others of backends/ipu need of them are arguments.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Set

import popdist
import popdist.poptorch
import poptorch
import torch

from backends.base import Batch
from backends.image_loader import build_loader
from backends.ipu.attached import import_horovod
from backends.ipu.batches import check_whole_calls, combined_batch, padded_batches
from backends.ipu.launch import be_an_instance, check_replicas, connect, instance_options
from backends.ipu.layout import Layout
from backends.ipu.optimizer import IpuOptimizer
from backends.ipu.options import set_device_options, set_evaluation_options, set_training_options
from backends.ipu.placement import begin_stages, join_statistics, keep_outputs
from backends.ipu.processes import OneProcess, Processes
from backends.ipu.step import DeviceStep, set_precision
from normact import share_statistics
from training.classifier import Classifier
from training.loss import IGNORED
from training.metrics import StepSums
from training.nonfinite import NonFiniteLossError
from training.optimizer import build_optimizer
from training.order import EvaluationBatches, TrainingBatches
from training.weights import load_model_state

_NETWORK = "classifier.network."  # what PopTorch's names have in front of the network's own


class IpuSession:
    """One process's replicas. Training and evaluation take turns on the IPUs; in between the host has the weights.

    What is weaker than on a CPU: the device updates the weights before the host sees the loss, so a non-finite loss is
    reported after its update; no checkpoint is written of weights that are not finite. Each replica keeps its own
    running statistics of batch norm; those of each process's first replica are averaged when the host reads them.

    Args:
        layout: of the workload.
        classifier, undecayed, seed: see `backends.base.Placement.start`.

    Raises:
        ConfigError, DeviceError: processes that were started in another way than the layout needs.
    """

    def __init__(self, layout: Layout, classifier: Classifier, undecayed: Set[str], seed: int) -> None:
        self._layout, self._config, self._plan = layout, layout.config, layout.plan
        self._classifier, self._seed = classifier, seed
        self._process, self._processes = layout.launch.process, layout.launch.processes
        self.will_compile = True
        share_statistics(classifier.network, None, self._plan.gradient_accumulation)
        host_optimizer = build_optimizer(layout.optimizer, classifier.network, undecayed)
        set_precision(classifier, self._config.precision)
        begin_stages(classifier.network, layout.splits, poptorch.BeginBlock)
        activations = torch.float32 if self._config.precision == "32.32" else torch.float16
        join_statistics(classifier.network, layout.splits, layout.begins, activations)
        keep_outputs(classifier.network, layout.checkpoints, poptorch.recomputationCheckpoint)
        overlap = None if self._config.io_tiles is None else _overlapped
        self._step = DeviceStep(classifier, self._plan.micro_batch_size, poptorch.identity_loss, overlap)
        self._optimizer = IpuOptimizer(host_optimizer, self._step, poptorch.optim, self._config.loss_scaling)
        self._training: Any = None
        self._inference: Any = None
        self._last_step = 0
        self._host = _join_processes(layout)

    def training_batches(self, dataset: Any, epoch: int, first_step: int, workers: int) -> Iterable[Batch]:
        check_whole_calls(self._plan, len(dataset) // self._plan.global_batch_size, first_step)
        partners = self._classifier.draws.partners
        batches = TrainingBatches(
            len(dataset), self._plan, self._process, self._seed, epoch, first_step, partners, dataset.parts
        )
        return build_loader(dataset, batches, workers)

    def evaluation_batches(self, dataset: Any, workers: int) -> Iterable[Batch]:
        size = self._plan.micro_batch_size * self._evaluation_iterations * self._plan.local_replicas
        batches = EvaluationBatches(len(dataset), size, self._process, self._processes)
        return padded_batches(build_loader(dataset, batches, workers), size, len(dataset), self._processes)

    def train_step(self, batch: Batch, step: int, learning_rate: float) -> StepSums:
        inputs = combined_batch(batch, self._classifier.draws, self._plan, self._process, self._seed, step)
        self._optimizer.set_learning_rate(learning_rate)
        self._train_on_device(inputs)
        loss, top1, top5, images = self._training(*inputs)
        sums = self._sums((loss * self._plan.micro_batch_size, top1, top5, images), batch[1])
        self._last_step = step + self._plan.device_iterations - 1
        if not math.isfinite(float(sums.loss_sum)):
            mean = float(sums.loss_sum) / float(sums.images)
            raise NonFiniteLossError(self._last_step, learning_rate, mean, are_weights_intact=False)
        self.will_compile = False
        return sums

    def eval_step(self, batch: Batch) -> StepSums:
        self._evaluate_on_device()
        return self._sums(self._inference(*batch), batch[1])

    def weights(self) -> Dict[str, torch.Tensor]:
        self._fetch()
        state = {name[len(_NETWORK) :]: tensor for name, tensor in self._step.state_dict().items()}
        return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()}

    @contextlib.contextmanager
    def evaluating_with(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        self._release_training()
        kept = {name: tensor.clone() for name, tensor in self.weights().items()}
        try:
            self._send_to_evaluation(weights)
            yield
        finally:
            self._send_to_evaluation(kept)

    def total(self, sums: StepSums) -> StepSums:
        return StepSums.from_stacked(self._host.sum(sums.stacked()))

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        return self._host.gather(values)

    def agree(self, flag: int) -> int:
        return max(int(value) for value in self._host.gather(torch.tensor([flag])))

    def state(self) -> Dict[str, Any]:
        model = {name: tensor.clone() for name, tensor in self.weights().items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in model.values()):
            raise NonFiniteLossError(self._last_step, math.nan, math.nan, are_weights_intact=False)
        return {"model": model, "optimizer": self._optimizer.state(on_device=self._training is not None)}

    def load_state(self, state: Dict[str, Any], is_updated: bool = True) -> None:
        self._release_training()
        load_model_state(self._classifier.network, state["model"])
        self._optimizer.load(state["optimizer"], is_updated)

    def close(self) -> None:
        for executor in (self._training, self._inference):
            if _is_attached(executor):
                executor.detachFromDevice()
        self._host.close()

    @property
    def _evaluation_iterations(self) -> int:
        """Micro-batches of a replica in one call of evaluation: as in one weight update, which fills a pipeline."""
        return self._plan.gradient_accumulation

    def _options(self) -> Any:
        if popdist.isPopdistEnvSet():
            options = instance_options(popdist, self._layout.stages)
        else:
            options = poptorch.Options()
            options.replicationFactor(self._plan.local_replicas)
        if self._layout.name == "ipu_model":
            options.useIpuModel(True)
        set_device_options(
            poptorch, options, self._config, self._layout.stages, bool(self._layout.checkpoints), self._seed
        )
        options._Popart.set("groupNormStridedChannelGrouping", self._layout.is_strided)
        if any(True for _ in self._classifier.network.buffers()):
            options.broadcastBuffers(False)  # running statistics: each replica has its own
        return options

    def _train_on_device(self, inputs: List[torch.Tensor]) -> None:
        """Give the IPUs to training, compile it at first, and send a loaded state and the learning rate."""
        if _is_attached(self._inference):
            self._inference.detachFromDevice()
        if self._training is None:
            self._step.train()
            options = self._options()
            set_training_options(poptorch, options, self._plan, self._config)
            self._training = poptorch.trainingModel(self._step, options, self._optimizer.device)
            self._training.compile(*inputs)
        if not _is_attached(self._training):
            self._training.attachToDevice()
        self._optimizer.write_loaded()
        self._training.setOptimizer(self._optimizer.device)

    def _evaluate_on_device(self) -> None:
        """Give the IPUs to evaluation, with the newest weights."""
        self._release_training()
        if self._inference is None:
            self._step.eval()
            options = self._options()
            set_evaluation_options(poptorch, options, self._evaluation_iterations)
            self._inference = poptorch.inferenceModel(self._step, options)
        elif not _is_attached(self._inference):
            self._inference.attachToDevice()

    def _release_training(self) -> None:
        if _is_attached(self._training):
            self._fetch()
            self._training.detachFromDevice()

    def _fetch(self) -> None:
        """Bring the host's weights up to date; running statistics become the mean over processes."""
        if not _is_attached(self._training) or not self._training.copyWeightsToHostIfNeeded():
            return
        if self._processes > 1 and any(True for _ in self._classifier.network.buffers()):
            with torch.no_grad():
                for buffer in self._classifier.network.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(self._host.sum(buffer.clone()) / self._processes)
            self._training.copyWeightsToDevice()

    def _send_to_evaluation(self, weights: Mapping[str, torch.Tensor]) -> None:
        load_model_state(self._classifier.network, dict(weights))
        if _is_attached(self._inference):
            self._inference.copyWeightsToDevice()

    def _sums(self, outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> StepSums:
        """Return what a call returned; with synthetic data, which return nothing, only the number of images."""
        if self._config.synthetic_data:
            return StepSums(images=int((labels != IGNORED).sum()))
        return StepSums.from_step(outputs)


def _join_processes(layout: Layout) -> Processes:
    """Connect the processes of the run, each with its replicas."""
    launch, plan = layout.launch, layout.plan
    if launch.processes == 1 and not popdist.isPopdistEnvSet():
        return OneProcess()
    if launch.horovod is not None:
        be_an_instance(launch.horovod, plan.local_replicas, layout.stages)
    else:
        check_replicas(popdist.getNumTotalReplicas(), plan.replicas, layout.stages)
    popdist.init()
    return connect(launch.horovod or import_horovod(), launch.process, launch.processes)


def _is_attached(executor: Any) -> bool:
    return executor is not None and bool(executor.isAttachedToDevice())


def _overlapped(value: torch.Tensor, is_input: bool, is_training: bool) -> torch.Tensor:
    mode = poptorch.OverlapMode
    loop = mode.OverlapAccumulationLoop if is_training else mode.OverlapDeviceIterationLoop
    return (poptorch.set_overlap_for_input if is_input else poptorch.set_overlap_for_output)(value, loop)
