"""norm -> affine -> activation -> Proxy Normalization, as the one layer that networks are given."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, NamedTuple, Optional, Set, Tuple

import torch
import torch.fx
from torch import Tensor, nn

from normact import kernels
from normact.activations import Activation, GivenActivation, activation_function, activation_name
from normact.channels import affine, check_channels
from normact.given_activation import take_activation
from normact.kernels import FUSED_ACTIVATIONS
from normact.norm import Groups, Norm
from normact.norms import check_values_per_group
from normact.proxy import mid_quantiles, proxy_statistics
from normact.reference import proxy_normalize, reference_norm_act
from normact.torch_norm_names import TorchNormNames

try:
    from torch.compiler import is_compiling
except ImportError:  # torch 2.0, where nothing of this program is compiled

    def is_compiling() -> bool:
        return False


try:
    from torch.compiler import is_exporting
except ImportError:  # older torch

    def is_exporting() -> bool:
        return False


try:
    from torch._C._functorch import peek_interpreter_stack
except ImportError:  # a torch without torch.func

    def peek_interpreter_stack() -> Any:  # type: ignore[misc]
        return None


KERNELS = ("auto", "fused", "reference")
logger = logging.getLogger(__name__)
_logged: Set[Tuple[bool, Optional[str]]] = set()


class ProxySettings(NamedTuple):
    """How a layer's proxy statistics are computed (see proxy_statistics)."""

    eps: float
    method: str
    num_samples: Optional[int]


class GroupSettings(NamedTuple):
    """All that a group-normalized layer needs besides its tensors; flat, since fx writes it into generated code.

    The first three are those of Groups, the next three those of ProxySettings, or None each.
    """

    num_groups: int
    grouping: str
    eps: float
    proxy_eps: Optional[float]
    proxy_method: Optional[str]
    num_samples: Optional[int]
    activation: Activation
    kernel: str
    recompute: bool

    @property
    def proxy(self) -> Optional[ProxySettings]:
        """None for a layer without Proxy Normalization."""
        if self.proxy_eps is None or self.proxy_method is None:
            return None
        return ProxySettings(self.proxy_eps, self.proxy_method, self.num_samples)


class NormAct(TorchNormNames):
    """A norm, its affine, its activation and Proxy Normalization in one module.

    Formula: y = norm(x), z = phi(weight_c y + bias_c), out = (z - m_c) / sqrt(v_c + eps), where m_c and v_c
    are the mean and variance of phi(weight_c Y_c + bias_c) under Y_c ~ N(proxy_beta_c, (1 + proxy_gamma_c)^2).
    Without `proxy`, out = z; without an activation, out = weight_c y + bias_c.

    `norm` holds no affine: norm(x) is y, whatever kernel the layer itself runs.

    Args:
        channels: C.
        activation: a name (see activation_function), a function of one tensor, a module or a class of modules; None:
            norm and affine alone. A module with parameters, as nn.PReLU, becomes part of the layer, and its gradient
            flows through the proxy statistics too; several layers share a module, and make one each of a class.
        norm: the normalization. Some bring a nonlinearity of their own: `activation` is then its name, as "tlu" of
            filter response norm or "evonorm_s0".
        bias: whether there is a beta.
        proxy: settings of Proxy Normalization, or None for a layer without it.
        learn_proxy: whether proxy_beta and proxy_gamma are parameters; else they are fixed at zero.
        kernel: "auto" (fused where it applies, else reference), "fused" or "reference".
        recompute: inside normact.kernels.recomputed_activations(), later layers do not keep this layer's output for
            backward. The reference cannot, and says so once.

    Shape:
        (N, C, *spatial) -> same, 2 to 5 dims.

    Dtype: that of the input, also under autocast; statistics are float32 (float64 for float64 inputs).

    Raises:
        ValueError: at construction, an activation that is not a function of each element by itself, or whose proxy
            statistics cannot be computed (see take_activation); wrong shape; what the norm refuses; kernel "fused"
            where the fused form does not apply.

    Source: Labatie et al. 2021, section 5, Eq. 7.
    """

    phi: Optional[Activation]
    bias: Optional[Tensor]
    proxy_beta: Optional[Tensor]
    proxy_gamma: Optional[Tensor]
    handed_affine: Optional[Tuple[Tensor, Tensor]] = None  # the proxy's, for one forward pass: JointProxyStatistics

    def __init__(
        self,
        channels: int,
        activation: Optional[GivenActivation],
        norm: Norm,
        *,
        bias: bool = True,
        proxy: Optional[ProxySettings] = None,
        learn_proxy: bool = True,
        kernel: str = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        taken: Optional[Activation] = norm.own_activation if activation is not None else None
        if activation is not None and taken is None:
            taken = take_activation(activation, channels, by_quadrature=proxy is not None and proxy.method == "exact")
        if kernel == "fused" and taken is not None and taken not in FUSED_ACTIVATIONS:
            raise ValueError(
                f'kernel "fused" does not apply: activation {activation_name(taken)} has no fused form, '
                f'{", ".join(FUSED_ACTIVATIONS)} have; use kernel "auto" or "reference"'
            )
        if proxy is not None and proxy.num_samples is not None:
            mid_quantiles(proxy.num_samples)
        self.channels = channels
        self.norm = norm
        self.proxy = None if activation is None else proxy
        self.kernel = kernel
        self.recompute = recompute
        self.phi = taken
        self.weight = nn.Parameter(torch.empty(channels))
        learned = self.proxy is not None and learn_proxy
        for name, is_there in (("bias", bias), ("proxy_beta", learned), ("proxy_gamma", learned)):
            self.register_parameter(name, nn.Parameter(torch.empty(channels)) if is_there else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gamma to 1, and beta, proxy_beta and proxy_gamma to 0.

        A network begun on the meta device calls this of each module once it has memory.
        """
        nn.init.ones_(self.weight)
        for parameter in (self.bias, self.proxy_beta, self.proxy_gamma):
            if parameter is not None:
                nn.init.zeros_(parameter)

    @property
    def activation(self) -> Optional[str]:
        """Name of the activation; None where there is none."""
        return None if self.phi is None else activation_name(self.phi)

    def forward(self, input: Tensor) -> Tensor:  # as torch's norms call it, for calls by keyword
        x = input
        if type(self.weight).__name__ == "ExpandedWeight":
            from normact.per_sample import with_expanded_weights  # leans on torch's private parts: only where asked for

            return with_expanded_weights(self, x)
        if self.handed_affine is not None:
            assert self.phi is not None
            (scale, shift), self.handed_affine = self.handed_affine, None
            return affine(activation_function(self.phi)(self.norm(x, self.weight, self.bias)), scale, shift)
        groups = self.norm.groups()
        if groups is not None:
            return self._group_norm_act(x, groups)
        y = self.norm(x, self.weight, self.bias)
        if self.phi is None or self.norm.own_activation is not None:
            return y
        z = activation_function(self.phi)(y)
        if self.proxy is None:
            return z
        mean, inverse_std = proxy_statistics(
            self.phi, self.weight, self.bias, self.proxy_beta, self.proxy_gamma,
            eps=self.proxy.eps, method=self.proxy.method, num_samples=self.proxy.num_samples,
        )  # fmt: skip
        return proxy_normalize(z, mean, inverse_std)

    def _group_norm_act(self, x: Tensor, groups: Groups) -> Tensor:
        check_channels(x, self.channels)
        activation = "identity" if self.phi is None else self.phi
        proxy: Tuple[Optional[float], Optional[str], Optional[int]] = self.proxy or (None, None, None)
        settings = GroupSettings(*groups, *proxy, activation, self.kernel, self.recompute)
        return group_norm_act(
            x,
            weight=self.weight,
            bias=self.bias,
            proxy_beta=self.proxy_beta,
            proxy_gamma=self.proxy_gamma,
            settings=settings,
        )

    def __prepare_scriptable__(self) -> Any:
        """Refuse torch.jit.script, which else fails in words about type annotations.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "torch.jit.script does not take a NormAct layer, whose kernels and activations are chosen in Python; use "
            "torch.jit.trace, torch.export or torch.compile"
        )

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, activation={self.activation}, bias={self.bias is not None}, proxy={self.proxy}, "
            f"learn_proxy={self.proxy_beta is not None}, kernel={self.kernel}"
        )


@torch.fx.wrap
def group_norm_act(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Optional[Tensor],
    proxy_beta: Optional[Tensor],
    proxy_gamma: Optional[Tensor],
    settings: GroupSettings,
) -> Tensor:
    """Return the whole layer for a group, layer or instance norm, by the fused kernels or by the reference.

    Raises:
        ValueError: kernel "fused" where the fused form does not apply; the message gives the reason.
    """
    check_values_per_group(x, settings.num_groups)
    is_fused = settings.kernel != "reference" and _use_fused(x, settings)
    activation, proxy = settings.activation, settings.proxy
    mean, inverse_std = None, None
    if proxy is not None and is_fused and proxy.method == "exact" and isinstance(activation, str):
        mean, inverse_std = kernels.fused_proxy_statistics(activation, weight, bias, proxy_beta, proxy_gamma, proxy.eps)
    elif proxy is not None:
        mean, inverse_std = proxy_statistics(
            activation, weight, bias, proxy_beta, proxy_gamma,
            eps=proxy.eps, method=proxy.method, num_samples=proxy.num_samples,
        )  # fmt: skip
    norm_act: Callable[..., Tensor] = reference_norm_act
    if is_fused:
        norm_act = functools.partial(kernels.fused_norm_act, recompute=settings.recompute)
    return norm_act(
        x, weight, bias, mean, inverse_std,
        num_groups=settings.num_groups, grouping=settings.grouping, activation=activation, eps=settings.eps,
    )  # fmt: skip


def _use_fused(x: Tensor, settings: GroupSettings) -> bool:
    """Whether the fused kernels apply; says so once per reason."""
    reason = _why_not_fused(x, settings) or kernels.why_not_fused(
        x, settings.num_groups, settings.grouping, activation_name(settings.activation)
    )
    if reason is not None and settings.kernel == "fused":
        raise ValueError(f'kernel "fused" does not apply: {reason}; use kernel "auto" or "reference"')
    # Writing a log would break a graph being compiled.
    if not is_compiling() and (reason is None, reason) not in _logged:
        _logged.add((reason is None, reason))
        if reason is None:
            logger.info("norm and activation: fused kernels")
        else:
            logger.info("norm and activation: reference operations, because %s", reason)
            if settings.recompute:
                logger.warning("recompute has no effect on reference operations")
    return reason is None


def _why_not_fused(x: Tensor, settings: GroupSettings) -> Optional[str]:
    """Reasons that do not depend on the kernels."""
    if torch.jit.is_tracing():
        return "the layer is being traced, and a trace holds torch operations alone"
    if is_exporting() and settings.kernel != "fused":
        return "the layer is being exported, and an exported program holds torch operations alone"
    # A compiler traces derivatives and batches of the fused operator itself.
    if settings.kernel != "fused" and not is_compiling():
        if torch.autograd.forward_ad._current_level >= 0:
            return "a forward-mode derivative is being taken"
        if peek_interpreter_stack() is not None:
            return "a transform of torch.func is active"
    if not isinstance(settings.activation, str):
        return f"activation {activation_name(settings.activation)} is a function without a name known to the kernels"
    return None


# fx records a wrapped function by the module that calls it.
torch.fx.wrap("affine")
torch.fx.wrap("check_channels")
torch.fx.wrap("proxy_normalize")
torch.fx.wrap("proxy_statistics")
