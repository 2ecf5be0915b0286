"""The factory that networks are given: which norm, with or without Proxy Normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Set

from torch import nn

from normact.activations import Activation
from normact.batch_norm import BATCH_NORM_MOMENTUM
from normact.norm_act import KERNELS, NormAct, ProxySettings
from normact.norms import (
    GROUPINGS,
    BatchNorm,
    EvoNormS0,
    FilterResponseNorm,
    GroupNorm,
    IdentityNorm,
)
from normact.proxy import DEFAULT_NUM_SAMPLES, DEFAULT_PROXY_EPS, check_proxy_method
from normact.weight_standardization import WeightStandardizedConv2d

_WS = "+ws"
_AFFINE_NORMS = ("batch", "layer", "instance", "group")
_GROUP_FAMILY = ("layer", "instance", "group")
NORMS = (*_AFFINE_NORMS, "frn", "evonorm_s0", "none", *(name + _WS for name in _AFFINE_NORMS))

_GROUP_DEFAULTS: Dict[str, Any] = {"num_groups": 8, "grouping": "contiguous"}
# The fields that each norm uses, with their defaults; the others are refused.
_NORM_DEFAULTS: Dict[str, Dict[str, Any]] = {
    "batch": {"eps": 1e-5, "norm_batch_size": None, "momentum": BATCH_NORM_MOMENTUM},
    "layer": {"eps": 1e-5},
    "instance": {"eps": 1e-5},
    "group": {"eps": 1e-5, **_GROUP_DEFAULTS},
    "frn": {"eps": 1e-6},
    "evonorm_s0": {"eps": 1e-5, **_GROUP_DEFAULTS},
    "none": {},
}
_PROXY_DEFAULTS: Dict[str, Any] = {"proxy_eps": DEFAULT_PROXY_EPS, "proxy_method": "exact", "learn_proxy": True}


@dataclass(frozen=True)
class NormActFactory:
    """Makes a network's norm+activation layers: factory(channels, activation) -> NormAct.

    A field left at None takes the default given here where the norm uses it, and stays None where it does
    not; a field given to a norm that does not use it is an error.

    Args:
        norm: batch, layer, instance, group, frn, evonorm_s0 or none (affine and activation alone); batch, layer,
            instance and group take the suffix "+ws" for weight-standardized convolutions.
        proxy: Proxy Normalization; True by default with batch, layer, instance and group, else False.
        num_groups: group and evonorm_s0; 8.
        grouping: group and evonorm_s0; "contiguous" (channel c in group c // (C / G)) or "strided" (c % G).
        eps: of the norm; 1e-5, frn 1e-6.
        momentum: batch; weight of a weight update's images in the running statistics, 0.1.
        proxy_eps: with proxy; 0.03.
        proxy_method: with proxy; "exact" or "sampled".
        learn_proxy: with proxy; True. False fixes proxy_beta and proxy_gamma at zero.
        norm_batch_size: batch; images that share statistics. None: the whole micro-batch (of the process group).
        kernel: "auto", "fused" (group, layer and instance) or "reference".
        recompute: group, layer and instance with the fused kernels; see normact.kernels.rebuilt_activations.
        num_samples: with proxy_method "sampled"; 200.

    Raises:
        ValueError: unknown name, or a field that the norm does not use.
    """

    norm: str = "group"
    proxy: Optional[bool] = None
    num_groups: Optional[int] = None
    grouping: Optional[str] = None
    eps: Optional[float] = None
    momentum: Optional[float] = None
    proxy_eps: Optional[float] = None
    proxy_method: Optional[str] = None
    learn_proxy: Optional[bool] = None
    norm_batch_size: Optional[int] = None
    kernel: str = "auto"
    recompute: bool = False
    num_samples: Optional[int] = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is unknown; use one of {', '.join(NORMS)}")
        if self.proxy and self._base not in _AFFINE_NORMS:
            raise ValueError(f"proxy composes with {', '.join(_AFFINE_NORMS)}; norm is {self.norm!r}; leave proxy out")
        self._set("proxy", self._base in _AFFINE_NORMS if self.proxy is None else self.proxy)
        self._resolve(_NORM_DEFAULTS, self._base, f"norm {self.norm!r}")
        self._resolve({"with": _PROXY_DEFAULTS, "without": {}}, "with" if self.proxy else "without", "proxy=False")
        samples = {"exact": {}, "sampled": {"num_samples": DEFAULT_NUM_SAMPLES}}
        if self.proxy_method is not None:
            check_proxy_method(self.proxy_method, None)
        self._resolve(samples, self.proxy_method or "exact", f"proxy_method {self.proxy_method!r}")
        self._check_values()

    @property
    def _base(self) -> str:
        return self.norm[: -len(_WS)] if self.norm.endswith(_WS) else self.norm

    @property
    def uses_batch_norm(self) -> bool:
        """Whether an image's result depends on its batch."""
        return self._base == "batch"

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _resolve(self, table: Dict[str, Dict[str, Any]], row: str, words: str) -> None:
        """Fill the fields of the table's row with their defaults, and refuse those of its other rows alone."""
        for field in sorted({name for defaults in table.values() for name in defaults}):
            value = getattr(self, field)
            if field in table[row]:
                self._set(field, table[row][field] if value is None else value)
            elif value is not None:
                raise ValueError(f"{field}={value!r} has no effect with {words}; leave {field} out")

    def _check_values(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel {self.kernel!r} is unknown; use one of {', '.join(KERNELS)}")
        if self.kernel == "fused" and self._base not in _GROUP_FAMILY:
            raise ValueError(
                f'kernel "fused" is there for {", ".join(_GROUP_FAMILY)}; norm is {self.norm!r}; '
                'use "auto" or "reference"'
            )
        if self.grouping is not None and self.grouping not in GROUPINGS:
            raise ValueError(f"grouping {self.grouping!r} is unknown; use one of {', '.join(GROUPINGS)}")
        for field in ("num_groups", "norm_batch_size", "num_samples"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}={value} must be at least 1")
        for field in ("eps", "proxy_eps"):
            value = getattr(self, field)
            if value is not None and value < 0:
                raise ValueError(f"{field}={value} must not be negative")
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must be above 0 and at most 1")
        if self.recompute and (self.kernel == "reference" or self._base not in _GROUP_FAMILY):
            raise ValueError(
                f"recompute=True needs the fused kernels of {', '.join(_GROUP_FAMILY)}; got norm {self.norm!r} and "
                f"kernel {self.kernel!r}; leave recompute out"
            )

    def __call__(
        self, channels: int, activation: Optional[Activation] = "relu", *, bias: Optional[bool] = None
    ) -> NormAct:
        """One layer.

        Args:
            channels: C.
            activation: a name, a function of one tensor, or None for norm and affine alone, never with PN.
            bias: whether there is a beta. None: yes, except without an activation in a network with PN, where the
                next layers' norm removes it (the paper's authors drop it at EfficientNet's projections).

        Raises:
            ValueError: num_groups does not divide channels; unknown activation.
        """
        if bias is None:
            bias = not (self.proxy and activation is None)
        proxy = None
        if self.proxy:
            assert self.proxy_eps is not None and self.proxy_method is not None
            proxy = ProxySettings(self.proxy_eps, self.proxy_method, self.num_samples)
        return NormAct(
            channels,
            activation,
            self._build_norm(channels, with_activation=activation is not None),
            bias=bias,
            proxy=proxy,
            learn_proxy=bool(self.learn_proxy),
            kernel=self.kernel,
            recompute=self.recompute,
        )

    def _build_norm(self, channels: int, with_activation: bool) -> nn.Module:
        eps = self.eps if self.eps is not None else 0.0
        num_groups, grouping = self.num_groups or 0, self.grouping or ""
        if self._base == "batch":
            assert self.momentum is not None
            return BatchNorm(channels, norm_batch_size=self.norm_batch_size, eps=eps, momentum=self.momentum)
        if self._base == "group":
            return GroupNorm(channels, num_groups, grouping=grouping, eps=eps)
        if self._base in _GROUP_FAMILY:
            return GroupNorm(channels, 1 if self._base == "layer" else channels, eps=eps)
        if self._base == "frn":
            return FilterResponseNorm(channels, eps=eps, threshold=with_activation)
        if self._base == "evonorm_s0":
            return EvoNormS0(channels, num_groups, grouping=grouping, eps=eps, with_activation=with_activation)
        return IdentityNorm(channels)

    def conv2d(self, in_channels: int, out_channels: int, kernel_size: Any, **options: Any) -> nn.Conv2d:
        """The convolution in front of a norm: nn.Conv2d, weight-standardized under "+ws".

        Args:
            in_channels: as nn.Conv2d.
            out_channels: as nn.Conv2d.
            kernel_size: as nn.Conv2d.
            options: the other arguments of nn.Conv2d.
        """
        conv = WeightStandardizedConv2d if self.norm.endswith(_WS) else nn.Conv2d
        return conv(in_channels, out_channels, kernel_size, **options)


def affine_parameter_names(model: nn.Module) -> Set[str]:
    """Names of the parameters that take no weight decay: the scales, shifts and thresholds of norms.

    That is every parameter of a NormAct but proxy_beta and proxy_gamma (gamma and beta; tau of filter response norm,
    v of EvoNorm-S0), and weight and bias of plain torch norms. Weight decay applies to everything else.

    Source: Labatie et al. 2021, section 5.
    """
    plain = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, (NormAct, *plain)):
            for name, _ in module.named_parameters():
                if name not in ("proxy_beta", "proxy_gamma"):
                    names.add(f"{prefix}.{name}" if prefix else name)
    return names
