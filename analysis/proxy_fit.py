"""How well each proxy of Proxy Normalization fits the channel it stands for, and which condition of Theorem 3 fails.

PN takes a channel's y for N(0, 1) (N(proxy_beta, (1 + proxy_gamma)^2) with its own parameters). What is left of a
channel's mean after PN is, with m and v the mean and the variance under the proxy,

    mean(z~) = (E[phi(x)] - m) / sqrt(v + eps) = balance + shape + parameters,    x = gamma y + beta

    balance     (m_y - m_0) / sqrt(v + eps)        y has not mean 0 and deviation 1 in the channel: conditions (i), (ii)
    shape       (E[phi(x)] - m_y) / sqrt(v + eps)  y is not Gaussian: first part of condition (iii)
    parameters  (m_0 - m) / sqrt(v + eps)          proxy_beta, proxy_gamma are not zero: second part of (iii)

where m_0 is the mean of phi under Y ~ N(0, 1), and m_y that under a Gaussian with the channel's own mean and deviation.

Source: Labatie et al. 2021, section 5, Eq. 7 and Theorem 3.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Dict, Iterable, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from analysis.normalized import Normalization, evaluation_form, find_normalizations
from analysis.power import PowerStatistics
from normact import NormAct
from normact.proxy import proxy_statistics


class ProxyFit(NamedTuple):
    """One Proxy Normalization; the last four are root mean squares over channels, in units of its output.

    Args:
        name: path in the network.
        collapse_before: P1 / P of y, what enters the activation step.
        collapse_after: P1 / P of z~, its output.
        lowest_deviation: of y in a channel; 1 where channels are balanced.
        highest_deviation: likewise.
        left: of the channel means after PN.
        balance, shape, parameters: the terms of which `left` is made; they may cancel.
    """

    name: str
    collapse_before: float
    collapse_after: float
    lowest_deviation: float
    highest_deviation: float
    left: float
    balance: float
    shape: float
    parameters: float


@torch.no_grad()
def measure_proxy_fit(network: nn.Module, batches: Iterable[Tensor]) -> List[ProxyFit]:
    """Run batches of images through a network, in evaluation form, and measure the fit of each of its proxies.

    Args:
        network: its norms with PN are this project's NormAct, as convert_norm makes them. Each runs once in a forward.
        batches: of images, as the network takes them.

    Raises:
        ValueError: no norm has PN.
    """
    normalizations, layers = find_normalizations(network)[0], _layers_with_pn(network)
    before = {path: PowerStatistics(module.channels) for path, module in layers.items()}
    after = {path: PowerStatistics(module.channels) for path, module in layers.items()}

    def count(
        path: str, normalization: Normalization, module: nn.Module, inputs: Tuple[Tensor], output: Tensor
    ) -> None:
        before[path].add(normalization(inputs[0]))
        after[path].add(output)

    hooks = [
        module.register_forward_hook(partial(count, path, normalizations[path])) for path, module in layers.items()
    ]
    try:
        with evaluation_form(network):
            for images in batches:
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [_fit(path, module, before[path], after[path]) for path, module in layers.items()]


@torch.no_grad()
def refitted(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of a network whose proxies have the means and deviations of their channels on these images.

    With that, balance is not needed: what collapse is left comes from elsewhere. The layers are refitted in the order
    in which they run, each on what the refitted ones before it give.

    Raises:
        ValueError: no norm has PN, or one has a proxy without parameters.
    """
    network = copy.deepcopy(network)
    normalizations, layers = find_normalizations(network)[0], _layers_with_pn(network)
    fixed = [path for path, module in layers.items() if module.proxy_beta is None]
    if fixed:
        raise ValueError(f"the proxies of {', '.join(fixed)} have no parameters to refit (norm.learn_proxy is false)")

    def refit(normalization: Normalization, module: NormAct, inputs: Tuple[Tensor]) -> None:
        assert module.proxy_beta is not None and module.proxy_gamma is not None
        statistics = PowerStatistics(module.channels)
        statistics.add(normalization(inputs[0]))
        mean, deviation = _mean_and_deviation(statistics)
        module.proxy_beta.copy_(mean)
        module.proxy_gamma.copy_(deviation - 1)

    hooks = [module.register_forward_pre_hook(partial(refit, normalizations[path])) for path, module in layers.items()]
    with evaluation_form(network):
        network(images)
    for hook in hooks:
        hook.remove()
    return network


def fit_table(fits: Iterable[ProxyFit]) -> str:
    """Return one line for each proxy, as text."""
    fits = list(fits)
    width = max(len(fit.name) for fit in fits)
    lines = [f"{'':<{width}}  P1/P: y    z~   deviations of y   mean left = balance + shape + parameters"]
    for fit in fits:
        deviations = f"{fit.lowest_deviation:5.2f} to {fit.highest_deviation:5.2f}"
        terms = f"{fit.left:10.3f} {fit.balance:9.3f} {fit.shape:7.3f} {fit.parameters:12.3f}"
        collapse = f"{fit.collapse_before:7.3f} {fit.collapse_after:5.3f}"
        lines.append(f"{fit.name:<{width}}  {collapse}   {deviations}  {terms}")
    return "\n".join(lines)


def _fit(path: str, layer: NormAct, before: PowerStatistics, after: PowerStatistics) -> ProxyFit:
    assert layer.activation is not None and layer.proxy is not None
    tensors: Dict[str, Tensor] = {name: value.detach().cpu().double() for name, value in layer.named_parameters()}
    gamma, beta = tensors["weight"], tensors.get("bias")
    eps, method, num_samples = layer.proxy
    mean_of_y, deviation_of_y = _mean_and_deviation(before)
    mean, inverse_std = proxy_statistics(
        layer.activation, gamma, beta, tensors.get("proxy_beta"), tensors.get("proxy_gamma"),
        eps=eps, method=method, num_samples=num_samples,
    )  # fmt: skip
    standard, _ = proxy_statistics(layer.activation, gamma, beta)
    gaussian, _ = proxy_statistics(layer.activation, gamma, beta, mean_of_y, deviation_of_y - 1)
    left = after.mean[0]
    balance, parameters = (gaussian - standard) * inverse_std, (standard - mean) * inverse_std
    return ProxyFit(
        path,
        _collapse(before),
        _collapse(after),
        float(deviation_of_y.min()),
        float(deviation_of_y.max()),
        *(float((each**2).mean().sqrt()) for each in (left, balance, left - balance - parameters, parameters)),
    )


def _layers_with_pn(network: nn.Module) -> Dict[str, NormAct]:
    normalizations = find_normalizations(network)[0]
    layers = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, NormAct) and module.proxy is not None and path in normalizations
    }
    if not layers:
        raise ValueError("no norm of this network has Proxy Normalization; train with norm.proxy, or convert with +pn")
    return layers


def _mean_and_deviation(statistics: PowerStatistics) -> Tuple[Tensor, Tensor]:
    """Of each channel over images and positions."""
    mean = statistics.mean[0]
    return mean, (statistics.channel_power().sum(dim=0) - mean**2).sqrt()


def _collapse(statistics: PowerStatistics) -> float:
    power = statistics.layer_power()
    return power[0] / sum(power) if sum(power) > 0 else 0.0
