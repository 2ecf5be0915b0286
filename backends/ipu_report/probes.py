"""Steps on PopTorch alone, before a network is run: is there an IPU, does it compile, does the layer compute."""

from __future__ import annotations

import copy
import time
from typing import Any, Dict, Tuple

import poptorch
import torch
from torch import Tensor, nn

from backends.ipu.step import use_plain_operations
from backends.ipu_report.series import UnequalError
from normact import NormActFactory

# float32 on both sides; sums in another order and approximated functions differ by parts in 1e6.
_TOLERANCE = 1e-4


def probe_attach(system: str) -> Dict[str, Any]:
    """Versions of PopTorch and of the IPU. That the kind is right was checked by choosing the backend."""
    version = poptorch.ipuHardwareVersion() if poptorch.ipuHardwareIsAvailable() else None
    return {"poptorch": str(poptorch.__version__), "hardware_version": version, "system": system}


def probe_compile(uses_ipu_model: bool) -> Dict[str, Any]:
    """Return a linear layer."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    model = poptorch.inferenceModel(copy.deepcopy(layer), _options(uses_ipu_model))
    start = time.perf_counter()
    found = model(x)
    seconds = time.perf_counter() - start
    model.destroy()
    return {"first_call_seconds": seconds, "difference": _difference("output", found, layer(x).detach())}


class _LayerStep(nn.Module):
    """The layer with a loss whose gradient is known: the sum of out * weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, weights: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.layer(x)
        return out, poptorch.identity_loss((out * weights).sum(), reduction="none")


def probe_layer(uses_ipu_model: bool) -> Dict[str, Any]:
    """GN + PN with SiLU, which has no kink, in training: its output, and gradients as the change by SGD at rate 1."""
    torch.manual_seed(0)
    layer = NormActFactory(norm="group", num_groups=8)(64, activation="silu")
    use_plain_operations(nn.Sequential(layer))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, weights = torch.randn(4, 64, 8, 8), torch.randn(4, 64, 8, 8)
    expected = copy.deepcopy(layer)
    out = expected(x)
    (out * weights).sum().backward()
    step = _LayerStep(layer)
    optimizer = poptorch.optim.SGD(step.parameters(), lr=1.0)
    training = poptorch.trainingModel(step, _options(uses_ipu_model), optimizer)
    found, _ = training(x, weights)
    training.copyWeightsToHost()
    differences = {"output": _difference("output", found, out.detach())}
    for name, parameter in expected.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.detach() - dict(layer.named_parameters())[name].detach()
        differences[name] = _difference(f"gradient of {name}", gradient, parameter.grad)
    training.destroy()
    return {"differences": differences}


def _options(uses_ipu_model: bool) -> Any:
    options = poptorch.Options()
    if uses_ipu_model:
        options.useIpuModel(True)
    return options


def _difference(what: str, found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value.

    Raises:
        UnequalError: it is more than float32 explains.
    """
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE:
        raise UnequalError(
            f"{what} differs from the CPU's by {difference:.2g} of its largest value; {_TOLERANCE:g} is allowed"
        )
    return difference
