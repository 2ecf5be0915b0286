"""One network converted: what happened to its norms, whether it still runs, and whether its images are independent."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from analysis.conversion.watch import PairWatch
from normact import ConversionReport, NormActFactory, convert_norm

# Networks with more parameters are converted on the meta device alone.
MAX_REAL_PARAMETERS = 30_000_000
_DISTRIBUTIONS = {"nnU-Net": "dynamic_network_architectures"}


@dataclass(frozen=True)
class Candidate:
    """A network to convert.

    Args:
        library: that it is of.
        family: the file that it is built by, or what the library calls it.
        name: in the library.
        build: makes it, on the device that is current.
        shape: of one image.
        inputs: tensors of that shape that its forward takes.
    """

    library: str
    family: str
    name: str
    build: Callable[[], nn.Module]
    shape: Tuple[int, ...]
    inputs: int = 1


@dataclass(frozen=True)
class Surveyed:
    """What was found; see `survey`.

    Args:
        parameters: of the network.
        norms: it has.
        with_proxy: became layers with Proxy Normalization.
        alone: became norms without an activation: reason -> how many.
        kept: stayed: reason -> how many.
        pairs: norms whose output an activation took when it ran.
        missed: of these, the ones without Proxy Normalization: (path, reason).
        untraced: (path, error) of what tracing could not follow.
        runs: "" where the converted network runs, else the error.
        independent: whether an image's output in training is the same beside other images; None: not tried.
        refused: why there was no conversion; "" where there was one.
        version: of the library; "" where it is not known.
    """

    library: str
    family: str
    name: str
    parameters: int = 0
    norms: int = 0
    with_proxy: int = 0
    alone: Dict[str, int] = field(default_factory=dict)
    kept: Dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    missed: List[Tuple[str, str]] = field(default_factory=list)
    untraced: List[Tuple[str, str]] = field(default_factory=list)
    runs: str = ""
    independent: Optional[bool] = None
    refused: str = ""
    version: str = ""

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)


def survey(candidate: Candidate) -> Surveyed:
    """Convert a network to group norm with Proxy Normalization, and run it.

    It is built on the meta device, where nothing is computed; with few enough parameters again with random weights.
    Then it runs in training, twice with the same random numbers: the first image's output must not depend on the second
    image.
    """
    row = Surveyed(candidate.library, candidate.family, candidate.name, version=_version(candidate.library))
    model = _without_values(candidate)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    is_real = parameters <= MAX_REAL_PARAMETERS
    if is_real:
        torch.manual_seed(0)
        model = candidate.build()
    device = "cpu" if is_real else "meta"
    x = [torch.randn(2, *candidate.shape, device=device) for _ in range(candidate.inputs)]
    watch = PairWatch(model)
    try:
        with torch.no_grad(), watch:
            model.eval()(*x)
    # Whatever the network's own code raises.
    except Exception as error:
        found = {**row.as_dict(), "parameters": parameters, "refused": f"does not run before it: {_in_words(error)}"}
        return Surveyed(**found)
    try:
        model, report = convert_norm(model, NormActFactory())
    except ValueError as error:
        return Surveyed(**{**row.as_dict(), "parameters": parameters, "refused": str(error)})
    found = {**row.as_dict(), "parameters": parameters, **_of_report(report, watch)}
    try:
        found["independent"] = _is_independent(model, x) if is_real else None
        with torch.no_grad():
            model.eval()(*x)
    # Whatever the network's own code raises.
    except Exception as error:
        found["runs"] = _in_words(error)
    return Surveyed(**found)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _without_values(candidate: Candidate) -> nn.Module:
    """Return the network on the meta device; torchvision's RegNets need values while they are built."""
    try:
        with torch.device("meta"):
            return candidate.build()
    except NotImplementedError:
        return candidate.build().to("meta")


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _of_report(report: ConversionReport, watch: PairWatch) -> Dict[str, Any]:
    reasons = {norm.path: norm.reason for norm in report.norms if not norm.proxy}
    alone = Counter(norm.reason for norm in report.norms if norm.replaced_by is not None and not norm.proxy)
    kept = Counter(norm.reason for norm in report.norms if norm.replaced_by is None)
    pairs = watch.pairs()
    return {
        "norms": len(report.norms),
        "with_proxy": sum(norm.proxy for norm in report.norms),
        "alone": dict(alone),
        "kept": dict(kept),
        "pairs": len(pairs),
        "missed": [(path, reasons[path]) for path in sorted(pairs) if path in reasons],
        "untraced": list(report.trace_failures),
    }


@torch.no_grad()
def _is_independent(model: nn.Module, x: List[Tensor]) -> bool:
    """Whether the first image's outputs in training stay when the second image is another; both passes draw alike."""
    model.train()
    others = [torch.cat([images[:1], torch.randn_like(images[1:])]) for images in x]
    outputs = []
    for inputs in (x, others):
        torch.manual_seed(1)
        outputs.append(_first_image(model(*inputs)))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in zip(*outputs))


def _first_image(output: Any) -> List[Tensor]:
    if isinstance(output, Tensor):
        return [output[:1]]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _first_image(value)]
