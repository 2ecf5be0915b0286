"""The power decomposition of a network's normalized activations, streamed over images.

    y^l = Norm(x^l), before the affine; with mu and sigma the mean and the population standard deviation of
    y over the positions of one image in one channel, and mean and var those over images,

    P1 = mean(mu)^2    P2 = var(mu)    P3 = mean(sigma)^2    P4 = var(sigma)      P1 + P2 + P3 + P4 = mean(y^2)

P1 is what all images share (collapse), P2 and P4 tell images apart, P3 is the variation within an image.

Source: Labatie et al. 2021, section 3, Eq. 5.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from types import TracebackType
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Type

import torch
from torch import Tensor, nn

from analysis.normalized import Normalization, batch_statistics, evaluation_form, find_normalizations

FORMS = {"evaluation": evaluation_form, "training": batch_statistics}  # of batch norm
_BLOCK_VALUES = 2**22  # converted to float64 at a time: 32 MB, whatever the batch


class PowerStatistics:
    """Count, mean and sum of squared deviations of mu and sigma in each channel of one layer, over images.

    Everything is float64, and two parts are merged by Chan's formula: any split of the images into batches, and of the
    batches over processes, gives the same numbers up to float64 rounding.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.mean = torch.zeros(2, channels, dtype=torch.float64)  # of mu, and of sigma
        self.squares = torch.zeros(2, channels, dtype=torch.float64)  # sums of squared deviations from it

    @property
    def channels(self) -> int:
        return self.mean.shape[1]

    def add(self, y: Tensor) -> None:
        """Count the images of a batch.

        Args:
            y: normalized activations (N, C, *spatial) of any floating type. Without positions (N, C), sigma is 0.
        """
        images = max(1, _BLOCK_VALUES // max(1, y[0].numel()))
        for block in y.split(images):
            var, mu = torch.var_mean(block.reshape(*block.shape[:2], -1).double(), dim=2, unbiased=False)
            instance = torch.stack([mu, var.sqrt()])
            part = PowerStatistics(y.shape[1])
            part.images = len(block)
            part.mean = instance.mean(dim=1).cpu()
            part.squares = ((instance - instance.mean(dim=1, keepdim=True)) ** 2).sum(dim=1).cpu()
            self.merge(part)

    def merge(self, other: PowerStatistics) -> None:
        """Count the images of `other`, which are none of those counted here.

        Raises:
            ValueError: another number of channels.
        """
        if other.channels != self.channels:
            raise ValueError(f"statistics of {other.channels} channels cannot be merged into {self.channels}")
        images = self.images + other.images
        if other.images == 0:
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.images / images)
        self.squares = self.squares + other.squares + difference**2 * (self.images * other.images / images)
        self.images = images

    def state(self) -> Tensor:
        """Return one float64 tensor (4 C + 1,), to send to another process."""
        count = torch.tensor([self.images], dtype=torch.float64)
        return torch.cat([count, self.mean.flatten(), self.squares.flatten()])

    @classmethod
    def from_state(cls, state: Tensor) -> PowerStatistics:
        """Return the inverse of `state`."""
        statistics = cls((len(state) - 1) // 4)
        statistics.images = int(state[0])
        statistics.mean, statistics.squares = state[1:].cpu().reshape(2, 2, -1).unbind()
        return statistics

    def channel_power(self) -> Tensor:
        """P1 to P4 of each channel, (4, C).

        Raises:
            ValueError: no image was counted.
        """
        if self.images == 0:
            raise ValueError("no image was counted, so there is no power; run the network on some images first")
        p1, p3 = (self.mean**2).unbind()
        p2, p4 = (self.squares / self.images).unbind()
        return torch.stack([p1, p2, p3, p4])

    def layer_power(self) -> List[float]:
        """P1 to P4 of the layer: the means over its channels."""
        return self.channel_power().mean(dim=1).tolist()

    def effective_channels(self) -> float:
        """Return how evenly the channels share the power, as a fraction of C: (sum_c P_c)^2 / (C sum_c P_c^2).

        1 for equal channels, 1 / C where one channel has it all; 0 where there is no power.
        """
        power = self.channel_power().sum(dim=0)
        squares = (power**2).sum()
        return float(power.sum() ** 2 / (self.channels * squares)) if squares > 0 else 0.0


@torch.no_grad()
def measure_power(network: nn.Module, batches: Iterable[Tensor], form: str = "evaluation") -> PowerMeter:
    """Run batches of images through a network and measure the power decomposition at each of its norms.

    Args:
        network: runs eagerly, on the device of the batches; its mode and running statistics are as before at the end.
        batches: tensors, as the network takes them. Of a loader: (images for images, _ in loader).
        form: "evaluation": batch norm uses its running statistics, and how images are split into batches is of no
            consequence. "training": it uses those of each batch, which then should be its normalization batch.

    Raises:
        ValueError: another form, no batch, or a network in which no norm ran.
        TypeError: a batch that is not a tensor.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; use one of {', '.join(FORMS)}")
    count = 0
    with FORMS[form](network), PowerMeter(network) as meter:
        for count, images in enumerate(batches, start=1):
            if not isinstance(images, Tensor):
                raise TypeError(
                    f"batch {count} is a {type(images).__name__} and no tensor; of a loader that gives images and "
                    "labels, pass (images for images, _ in loader)"
                )
            network(images)
    if count == 0:
        raise ValueError("no batch was given, so nothing was measured")
    if not meter.layers:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in meter.not_measured.items())
        raise ValueError(
            "no norm of this network could be measured: "
            + (reasons or "it has none that is a module, or its forward reaches none of them")
        )
    return meter


class PowerMeter:
    """Measures the power decomposition at each norm of a network whenever the network runs. Used as a context.

    The network itself computes what it would without the meter: the normalized value is computed a second time, beside
    it, from what enters each norm (see analysis.normalized). Statistics gather over all forward passes.

    Args:
        network: any module. It must run eagerly: a compiled or traced network runs no hooks.

    Attributes:
        layers: by the norm's path in the network, in the order of their first run. A norm that runs several times in
            one forward pass has one entry for each, `path`, `path#2`, ...
        not_measured: paths of norms that have no value between normalization and affine, with the reason.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: "OrderedDict[str, PowerStatistics]" = OrderedDict()
        self._network = network
        self._normalizations, self.not_measured = find_normalizations(network)
        self._runs: Dict[str, int] = {}
        self._hooks: List[Any] = []

    def __enter__(self) -> PowerMeter:
        # First, since the network may itself be a norm.
        self._hooks = [self._network.register_forward_pre_hook(self._begin)]
        modules = dict(self._network.named_modules())
        for path, normalization in self._normalizations.items():
            hook = partial(self._measure, path, normalization)
            self._hooks.append(modules[path].register_forward_pre_hook(hook))
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, network: nn.Module, inputs: Sequence[Any]) -> None:
        self._runs = {}

    @torch.no_grad()
    def _measure(self, path: str, normalization: Normalization, module: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
        self._runs[path] = self._runs.get(path, 0) + 1
        name = path if self._runs[path] == 1 else f"{path}#{self._runs[path]}"
        x = inputs[0].detach()
        with torch.autocast(x.device.type, enabled=False):
            y = normalization(x if x.dtype == torch.float64 else x.float())
        if name not in self.layers:
            self.layers[name] = PowerStatistics(y.shape[1])
        self.layers[name].add(y)

    def state(self) -> Tensor:
        """Return the statistics of all layers as one float64 tensor, of equal shape in all processes of the network."""
        return torch.cat([statistics.state() for statistics in self.layers.values()])

    def merge_states(self, states: Sequence[Tensor]) -> None:
        """Replace the statistics by those of several processes together, from the `state` of each, in any order.

        Raises:
            ValueError: the states are not of this network's layers.
        """
        sizes = [len(statistics.state()) for statistics in self.layers.values()]
        merged = [PowerStatistics(statistics.channels) for statistics in self.layers.values()]
        for state in states:
            if len(state) != sum(sizes):
                raise ValueError(f"a state of {len(state)} values does not fit these layers, which have {sum(sizes)}")
            for statistics, part in zip(merged, state.split(sizes)):
                statistics.merge(PowerStatistics.from_state(part))
        self.layers = OrderedDict(zip(self.layers, merged))

    def table(self) -> str:
        """P1 to P4 and the effective channels at each norm, and the norms that were not measured, as text."""
        width = max(len(name) for name in [*self.layers, *self.not_measured, "norm"])
        lines = [f"{'norm':<{width}}  channels     P1     P2     P3     P4  effective channels"]
        for name, layer in self.layers.items():
            powers = "  ".join(f"{power:.3f}" for power in layer.layer_power())
            lines.append(f"{name:<{width}}  {layer.channels:>8}  {powers}  {layer.effective_channels():.3f}")
        lines += [f"{name:<{width}}  not measured: {reason}" for name, reason in self.not_measured.items()]
        return "\n".join(lines)

    def records(self) -> List[Dict[str, Any]]:
        """For each layer in order: name, channels, power [P1, P2, P3, P4], effective_channels."""
        return [
            {
                "name": name,
                "channels": statistics.channels,
                "power": statistics.layer_power(),
                "effective_channels": statistics.effective_channels(),
            }
            for name, statistics in self.layers.items()
        ]
