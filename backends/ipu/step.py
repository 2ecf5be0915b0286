"""What one micro-batch computes on an IPU."""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor, nn

from configs import ConfigError
from normact import NormAct
from normact.norms import GroupNorm
from training.classifier import Classifier


class DeviceStep(nn.Module):
    """A classifier's step with its loss marked: (loss, top1, top5, images) of one micro-batch, all float32 scalars.

    In training mode, loss = loss_sum / micro_batch_size: PopTorch's mean over micro-batches and replicas makes of it
    the mean over the global batch. In evaluation mode it is loss_sum, since padding leaves fewer images than places.
    Counts are float32 because the device adds them up over a call; they are exact below 2^24.

    One module serves training and inference, so that PopTorch knows that both have the same weights.

    Args:
        classifier: the network with its loss.
        micro_batch_size: images of one call of forward in training.
        mark_loss: poptorch.identity_loss.
        overlap: (tensor, is_input, is_training) -> the tensor, marked to be transferred while the device computes.
    """

    def __init__(
        self,
        classifier: Classifier,
        micro_batch_size: int,
        mark_loss: Callable[..., Tensor],
        overlap: Optional[Callable[[Tensor, bool, bool], Tensor]] = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.micro_batch_size = micro_batch_size
        self._mark_loss, self._overlap = mark_loss, overlap

    def forward(self, images: Tensor, labels: Tensor, drawn: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        inputs = (images, labels) if drawn is None else (images, labels, drawn)
        loss_sum, top1, top5, counted = self.classifier(*self._transferred(inputs, is_input=True))
        loss = self._mark_loss(loss_sum / self.micro_batch_size, reduction="none") if self.training else loss_sum
        return self._transferred((loss, top1.float(), top5.float(), counted.float()), is_input=False)

    def _transferred(self, values: Tuple[Tensor, ...], is_input: bool) -> Tuple[Tensor, ...]:
        if self._overlap is None:
            return values
        return tuple(self._overlap(value, is_input, self.training) for value in values)


def use_plain_operations(network: nn.Module) -> None:
    """Make every norm and activation run as torch operations, which PopTorch compiles.

    Raises:
        ConfigError: the configuration insists on what only the fused kernels of CPUs and GPUs do.
    """
    for module in network.modules():
        if isinstance(module, NormAct):
            if module.kernel == "fused" or module.recompute:
                raise ConfigError(
                    "norm.kernel fused and norm.recompute belong to the kernels of CPUs and GPUs; remove them for "
                    "IPUs, where pipelines recompute (ipu.checkpoints)"
                )
            module.kernel = "reference"


def use_device_grouping(network: nn.Module) -> bool:
    """Leave strided group norm to the device, which has it as an option for all group norms; whether there is one.

    The device then groups channels as the layer would, c mod G, without moving them; the weights stay as they are.
    The option applies to each group norm of more than one and fewer than C groups, so they must agree.

    Raises:
        ConfigError: the network has both groupings.
    """
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    groupings = {norm.grouping for norm in norms if 1 < norm.num_groups < norm.channels}
    if len(groupings) > 1:
        raise ConfigError("group norms of both groupings in one network; IPUs have one for all: set norm.grouping")
    if groupings != {"strided"}:
        return False
    for norm in norms:
        norm.grouping = "contiguous"
    return True


def set_precision(classifier: Classifier, precision: str) -> None:
    """Cast a float32 classifier: 16.16 computes with float16 weights, 16.32 casts float32 weights as they are used.

    Convolutions and norms compute in the type of their input; so images in float16 make all activations float16. The
    classifier layer works in the type of its weights. Running statistics, proxy statistics and the loss stay float32.
    """
    if precision == "32.32":
        return
    if precision == "16.16":
        classifier.network.half()
        for buffer in classifier.network.buffers():
            buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data
    for name in ("pixel_mean", "pixel_scale"):
        setattr(classifier, name, getattr(classifier, name).half())
    for module in classifier.network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_cast_to_weight)


def _cast_to_weight(module: nn.Module, inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
    assert isinstance(module.weight, torch.Tensor)
    return tuple(value.to(module.weight.dtype) for value in inputs)
