"""The factory that networks are given: which norm, with or without Proxy Normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, TypeVar, Union

from torch import nn

from normact.activations import GivenActivation
from normact.batch_norm import BATCH_NORM_MOMENTUM
from normact.norm import Norm
from normact.norm_act import KERNELS, NormAct, ProxySettings
from normact.norms import (
    GROUPINGS,
    BatchNorm,
    EvoNormS0,
    FilterResponseNorm,
    GroupNorm,
    IdentityNorm,
)
from normact.pointwise import DynamicErf, DynamicTanh
from normact.proxy import DEFAULT_NUM_SAMPLES, DEFAULT_PROXY_EPS, check_proxy_method
from normact.weight_standardization import WeightStandardizedConv2d

_WS = "+ws"
DEFAULT_MAX_GROUPS = 8
_T = TypeVar("_T")


class NormKind(NamedTuple):
    """A norm that can be asked for by name.

    Args:
        build: (factory, channels, with_activation) -> the norm of a layer.
        defaults: the fields that it uses, with their defaults; the others are refused.
        no_proxy_because: why Proxy Normalization does not go with it; empty: it does, and "+ws" too.
        is_fused: whether the fused kernels compute it.
    """

    build: Callable[[NormActFactory, int, bool], Norm]
    defaults: Dict[str, Any]
    no_proxy_because: str = ""
    is_fused: bool = False


_GROUPS: Dict[str, Any] = {
    "num_groups": "auto",
    "max_groups": None,
    "channels_per_group": None,
    "grouping": "contiguous",
}
_OWN_NONLINEARITY = "it has its own nonlinearity"
_NOT_NORMALIZED = "its output does not have mean 0 and variance 1"
NORM_KINDS: Dict[str, NormKind] = {
    "batch": NormKind(
        lambda f, c, _: BatchNorm(c, norm_batch_size=f.norm_batch_size, eps=_of(f.eps), momentum=_of(f.momentum)),
        {"eps": 1e-5, "norm_batch_size": None, "momentum": BATCH_NORM_MOMENTUM},
    ),
    "layer": NormKind(lambda f, c, _: GroupNorm(c, 1, eps=_of(f.eps)), {"eps": 1e-5}, is_fused=True),
    "instance": NormKind(lambda f, c, _: GroupNorm(c, c, eps=_of(f.eps)), {"eps": 1e-5}, is_fused=True),
    "group": NormKind(
        lambda f, c, _: GroupNorm(c, f.groups_of(c), grouping=_of(f.grouping), eps=_of(f.eps)),
        {"eps": 1e-5, **_GROUPS},
        is_fused=True,
    ),
    "frn": NormKind(
        lambda f, c, acts: FilterResponseNorm(c, eps=_of(f.eps), threshold=acts), {"eps": 1e-6}, _OWN_NONLINEARITY
    ),
    "evonorm_s0": NormKind(
        lambda f, c, acts: EvoNormS0(c, f.groups_of(c), grouping=_of(f.grouping), eps=_of(f.eps), with_activation=acts),
        {"eps": 1e-5, **_GROUPS},
        _OWN_NONLINEARITY,
    ),
    "dyt": NormKind(lambda f, c, _: DynamicTanh(c), {}, _NOT_NORMALIZED),
    "derf": NormKind(lambda f, c, _: DynamicErf(c), {}, _NOT_NORMALIZED),
    "none": NormKind(lambda f, c, _: IdentityNorm(c), {}, _NOT_NORMALIZED),
}


def norm_names() -> List[str]:
    """Return what NormActFactory.norm may be."""
    return [*NORM_KINDS, *(name + _WS for name in _with_proxy())]


def _with_proxy() -> List[str]:
    return [name for name, kind in NORM_KINDS.items() if not kind.no_proxy_because]


def _fused() -> List[str]:
    return [name for name, kind in NORM_KINDS.items() if kind.is_fused]


_PROXY_DEFAULTS: Dict[str, Any] = {"proxy_eps": DEFAULT_PROXY_EPS, "proxy_method": "exact", "learn_proxy": True}


@dataclass(frozen=True)
class NormActFactory:
    """Makes a network's norm+activation layers: factory(channels, activation) -> NormAct.

    A field left at None takes the default given here where the norm uses it, and stays None where it does
    not; a field given to a norm that does not use it is an error.

    Args:
        norm: batch, layer, instance, group, frn, evonorm_s0, dyt, derf or none (affine and activation alone); batch,
            layer, instance and group take the suffix "+ws" for weight-standardized convolutions.
        proxy: Proxy Normalization; True by default with batch, layer, instance and group, else False.
        num_groups: group and evonorm_s0; a number that must divide each layer's channels, or "auto", the default: for
            each layer the largest divisor of its channels up to max_groups.
        max_groups: with num_groups "auto"; 8.
        channels_per_group: group and evonorm_s0, in place of num_groups: groups of so many channels, or of the next
            larger number that divides a layer's.
        grouping: group and evonorm_s0; "contiguous" (channel c in group c // (C / G)) or "strided" (c % G).
        eps: of the norm; 1e-5, frn 1e-6.
        momentum: batch; weight of a weight update's images in the running statistics, 0.1.
        proxy_eps: with proxy; 0.03.
        proxy_method: with proxy; "exact" or "sampled".
        learn_proxy: with proxy; True. False fixes proxy_beta and proxy_gamma at zero.
        norm_batch_size: batch; images that share statistics. None: the whole micro-batch (of the process group).
        kernel: "auto", "fused" (group, layer and instance) or "reference".
        recompute: group, layer and instance with the fused kernels; see normact.kernels.recomputed_activations.
        num_samples: with proxy_method "sampled"; 200.

    Raises:
        ValueError: unknown name, or a field that the norm does not use.
    """

    norm: str = "group"
    proxy: Optional[bool] = None
    num_groups: Union[int, str, None] = None
    max_groups: Optional[int] = None
    channels_per_group: Optional[int] = None
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
        if self.norm not in norm_names():
            raise ValueError(f"norm {self.norm!r} is unknown; use one of {', '.join(norm_names())}")
        if self.proxy and self._base not in _with_proxy():
            raise ValueError(
                f"proxy composes with {', '.join(_with_proxy())}; norm is {self.norm!r}: "
                f"{NORM_KINDS[self._base].no_proxy_because}; leave proxy out"
            )
        self._set("proxy", self._base in _with_proxy() if self.proxy is None else self.proxy)
        self._resolve({name: kind.defaults for name, kind in NORM_KINDS.items()}, self._base, f"norm {self.norm!r}")
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
        return self._base == "batch"  # the one that takes a normalization batch

    @property
    def normalizes(self) -> bool:
        """Whether a norm's values have a mean of 0 and a variance of 1, over what it normalizes together."""
        return not NORM_KINDS[self._base].no_proxy_because

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
        if self.kernel == "fused" and self._base not in _fused():
            raise ValueError(
                f'kernel "fused" is there for {", ".join(_fused())}; norm is {self.norm!r}; use "auto" or "reference"'
            )
        if self.grouping is not None and self.grouping not in GROUPINGS:
            raise ValueError(f"grouping {self.grouping!r} is unknown; use one of {', '.join(GROUPINGS)}")
        if isinstance(self.num_groups, str) and self.num_groups != "auto":
            raise ValueError(f'num_groups={self.num_groups!r} must be a number or "auto"')
        if self.channels_per_group is not None and (self.num_groups != "auto" or self.max_groups is not None):
            raise ValueError(
                f"channels_per_group={self.channels_per_group} takes the place of num_groups and max_groups; "
                "leave these out"
            )
        if self.max_groups is not None and self.num_groups != "auto":
            raise ValueError(
                f'max_groups={self.max_groups} has no effect with num_groups={self.num_groups}; give "auto"'
            )
        for field in ("num_groups", "max_groups", "channels_per_group", "norm_batch_size", "num_samples"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field}={value} must be at least 1")
        for field in ("eps", "proxy_eps"):
            value = getattr(self, field)
            if value is not None and value < 0:
                raise ValueError(f"{field}={value} must not be negative")
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must be above 0 and at most 1")
        if self.recompute and (self.kernel == "reference" or self._base not in _fused()):
            raise ValueError(
                f"recompute=True needs the fused kernels of {', '.join(_fused())}; got norm {self.norm!r} and "
                f"kernel {self.kernel!r}; leave recompute out"
            )

    def __call__(self, channels: int, activation: Optional[GivenActivation], *, bias: Optional[bool] = None) -> NormAct:
        """Return one layer.

        Args:
            channels: C.
            activation: a name, a function of one tensor, a module or a class of modules (see NormAct); or None for norm
                and affine alone, never with PN. There is no default: whoever calls for a norm alone, as torchvision's
                norm_layer does, must not get an activation.
            bias: whether there is a beta. None: yes, except without an activation in a network with PN, where the
                next layers' norm removes it (the paper's authors drop it at EfficientNet's projections).

        Raises:
            ValueError: num_groups does not divide channels; unknown activation, or one that cannot be part of a layer.
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
            NORM_KINDS[self._base].build(self, channels, activation is not None),
            bias=bias,
            proxy=proxy,
            learn_proxy=bool(self.learn_proxy),
            kernel=self.kernel,
            recompute=self.recompute,
        )

    def groups_of(self, channels: int) -> int:
        """Return the groups of a norm over `channels` channels, by num_groups, max_groups and channels_per_group."""
        if self.channels_per_group is not None:
            return _divisor_up_to(max(1, channels // self.channels_per_group), channels)
        if isinstance(self.num_groups, int):
            return self.num_groups
        return _divisor_up_to(self.max_groups or DEFAULT_MAX_GROUPS, channels)

    def conv2d(self, in_channels: int, out_channels: int, kernel_size: Any, **options: Any) -> nn.Conv2d:
        """Return the convolution in front of a norm: nn.Conv2d, weight-standardized under "+ws".

        Args:
            in_channels: as nn.Conv2d.
            out_channels: as nn.Conv2d.
            kernel_size: as nn.Conv2d.
            options: the other arguments of nn.Conv2d.
        """
        conv = WeightStandardizedConv2d if self.norm.endswith(_WS) else nn.Conv2d
        return conv(in_channels, out_channels, kernel_size, **options)


def _of(value: Optional[_T]) -> _T:
    """Return a field that __post_init__ has filled."""
    assert value is not None
    return value


def _divisor_up_to(most: int, channels: int) -> int:
    return max(divisor for divisor in range(1, min(most, channels) + 1) if channels % divisor == 0)


def affine_parameter_names(model: nn.Module) -> Set[str]:
    """Return names of the parameters that take no weight decay: the scales, shifts and thresholds of norms.

    That is every parameter of a NormAct but proxy_beta and proxy_gamma (gamma and beta; tau of filter response norm,
    v of EvoNorm-S0, alpha and s of DyT and Derf), and weight and bias of plain torch norms. Weight decay applies to
    everything else.

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
