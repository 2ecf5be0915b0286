"""Let a network whose batch norms became other norms keep the function that it was trained for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, NamedTuple, Tuple, Union

import torch
from torch import Tensor, nn

from normact.batch_norm import BatchNorm
from normact.convert.neutral_proxy import neutral_proxy
from normact.convert.takers import TakersFound, take_back, takers_of
from normact.factory import NormActFactory
from normact.norm_act import NormAct
from normact.proxy import proxy_statistics

# A smaller gamma gives a channel that is a constant; proxy parameters, which gamma multiplies, could not move it.
_MIN_GAMMA = 1e-3
# Added to the variance of what the norm gives: a channel that is the same everywhere stays finite.
_EPS = 1e-5
# Of neutral proxy parameters, how far the mean may be from 0 and the deviation from 1.
_NEUTRAL = 0.05


class BatchNormSource(NamedTuple):
    """The batch norm whose gamma and beta a layer holds.

    Args:
        path: of the layer in the network.
        std: (C,) deviation of its normalized values, sqrt(running_var / (running_var + eps)): 1 but for eps.
    """

    path: str
    std: Tensor


@dataclass(frozen=True)
class CalibratedLayer:
    """What calibration did to one layer.

    Args:
        path: of the layer.
        output: what of Proxy Normalization's scale and shift: "taken back" by the layers that follow, "neutral" proxy
            parameters, "changed" where neither was possible; empty without Proxy Normalization.
        note: what it could not do, or why not; empty where there is nothing to say.
    """

    path: str
    output: str = ""
    note: str = ""


def outputs_of(layers: Tuple[CalibratedLayer, ...]) -> str:
    """Return what became of their Proxy Normalization, to be put behind their number; empty where they have none."""
    counts = {kind: sum(layer.output == kind for layer in layers) for kind in ("taken back", "neutral", "changed")}
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"; Proxy Normalization: {words}" if words else ""


def check_calibration(factory: NormActFactory) -> None:
    """Refuse norms for which batch norm's moments say nothing, and those that need none.

    Raises:
        ValueError: as said.
    """
    if factory.uses_batch_norm or not factory.normalizes:
        raise ValueError(
            f"calibration matches the moments of a batch norm by those of another norm, and norm is {factory.norm!r}; "
            "use group, layer or instance, or leave calibrate out"
        )


def source_of(path: str, norm: Union[BatchNorm, nn.modules.batchnorm._BatchNorm]) -> BatchNormSource:
    """Return what calibration takes of a batch norm with running statistics, which `path` names."""
    assert norm.running_var is not None
    var = norm.running_var.double()
    return BatchNormSource(path, (var / (var + norm.eps)).sqrt())


@torch.no_grad()
def calibrate_layers(
    model: nn.Module, layers: Dict[NormAct, BatchNormSource], images: Tensor
) -> Tuple[CalibratedLayer, ...]:
    """Set layers that hold gamma and beta of batch norms so that what follows sees what it saw behind these.

    In evaluation, batch norm gives its activation u_c = beta_c + gamma_c b_c, where b_c has mean 0 and deviation s_c
    (1 but for eps) over the images that its running statistics are of. The norm here gives y_c with mean mu_c and
    deviation sigma_c over `images`, so that

        gamma'_c = gamma_c s_c / sigma_c,   beta'_c = beta_c - gamma'_c mu_c

    give gamma' y + beta' the first two moments of u. Proxy Normalization then computes (z - m) r from z = phi(u):

    * With proxy_beta = mu and 1 + proxy_gamma = sigma the proxy has the moments of y, and m and r are those of
      phi(N(beta_c, (gamma_c s_c)^2)). Convolutions and linear layers that follow take z = (z - m) r / r + m back: their
      weights are divided by r_c, and what m adds goes into their bias. Where there is none, the calibration of the norm
      behind takes it up, since it is a constant; at the borders of a zero-padded convolution it is none.
    * Where the output also goes elsewhere (a sum, a gate), proxy_beta and proxy_gamma become those under which m = 0
      and r = 1 as nearly as the activation allows: Proxy Normalization starts as the identity.

    Layers are taken in the order in which they run, in one evaluation pass, so that each sees calibrated inputs. How
    the norm's own statistics differ from image to image stays: no constant can undo that, and fine-tuning has to.

    Args:
        model: the network; hooks run.
        layers: those to set, with the batch norms that they come from.
        images: inputs of the model, in one batch.

    Raises:
        ValueError: what the network says of the images.

    Source: the moments of phi under the proxy are Labatie et al. 2021, Eq. 7.
    """
    rows: Dict[NormAct, CalibratedLayer] = {}
    holders = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for layer, source in layers.items():
        if any(holders[id(parameter)] > 1 for parameter in (layer.weight, layer.bias) if parameter is not None):
            # One gamma cannot have the moments of two places.
            output = "" if layer.proxy is None else "changed"
            rows[layer] = CalibratedLayer(source.path, output, "not calibrated: others hold its gamma or beta too")
    free = {layer: source for layer, source in layers.items() if layer not in rows}
    takers = takers_of(model, free)

    def before(layer: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
        assert isinstance(layer, NormAct)
        if layer in rows:
            if "called" not in rows[layer].note:
                note = "called at several places, calibrated at the first"
                rows[layer] = CalibratedLayer(layers[layer].path, rows[layer].output, note)
            return
        _match_moments(layer, layers[layer].std, inputs[0])
        output, note = _undo_proxy(layer, takers.get(layer, TakersFound(reason="no traced data flow reaches it")))
        rows[layer] = CalibratedLayer(layers[layer].path, output, note)

    modes = [(module, module.training) for module in model.modules()]
    handles = [layer.register_forward_pre_hook(before) for layer in free]
    try:
        model.eval()
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    for layer, source in layers.items():
        rows.setdefault(layer, CalibratedLayer(source.path, note="the images did not reach it"))
    return tuple(rows[layer] for layer in layers)


def _match_moments(layer: NormAct, wanted_std: Tensor, x: Tensor) -> None:
    """Give gamma y + beta the moments that it has where y has mean 0 and wanted_std, and the proxy those of y."""
    y = layer.norm.normalized(x).double()
    var, mean = torch.var_mean(y, dim=[0, *range(2, y.dim())], unbiased=False)
    std = (var + _EPS).sqrt()
    gamma = layer.weight.double() * wanted_std.to(layer.weight.device)
    gamma = torch.copysign(gamma.abs().clamp(min=_MIN_GAMMA), gamma) / std
    layer.weight.copy_(gamma)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() - gamma * mean)
    if layer.proxy_beta is not None and layer.proxy_gamma is not None:
        layer.proxy_beta.copy_(mean)
        layer.proxy_gamma.copy_(std - 1.0)


def _undo_proxy(layer: NormAct, takers: TakersFound) -> Tuple[str, str]:
    """Let what follows see the activation as it is without Proxy Normalization; how, and why not otherwise."""
    if layer.proxy is None or layer.phi is None:
        return "", ""
    eps, method, num_samples = layer.proxy
    gamma, beta = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    if takers.modules:
        proxy_beta, proxy_gamma = (
            None if value is None else value.double() for value in (layer.proxy_beta, layer.proxy_gamma)
        )
        mean, inverse_std = proxy_statistics(
            layer.phi, gamma, beta, proxy_beta, proxy_gamma, eps=eps, method=method, num_samples=num_samples
        )
        for module in takers.modules:
            take_back(module, 1.0 / inverse_std, mean)
        return "taken back", ""
    if layer.proxy_beta is None or layer.proxy_gamma is None:
        return "changed", takers.reason
    m, s, distance = neutral_proxy(layer.phi, eps)
    if distance > _NEUTRAL:
        return "changed", f"{takers.reason}; no proxy of {layer.activation} has mean 0 and variance 1"
    layer.proxy_beta.copy_((m if beta is None else m - beta) / gamma)
    layer.proxy_gamma.copy_(s / gamma.abs() - 1.0)
    return "neutral", takers.reason
