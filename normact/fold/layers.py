"""The layers of a folded network, with constants in the place of what its weights fix."""

from __future__ import annotations

import copy
import functools
from typing import Any, Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from normact import kernels
from normact.activations import Activation, activation_function, activation_name
from normact.channels import affine, check_channels, per_channel
from normact.norm import Groups, Norm
from normact.norm_act import is_exporting
from normact.reference import proxy_normalize
from normact.weight_standardization import WeightStandardizedConv2d, standardized

# In evaluation they hand their input on.
ABSENT = (nn.Identity, nn.modules.dropout._DropoutNd)


class ChannelAffine(NamedTuple):
    """scale_c x + shift_c, both (C,) and float64."""

    scale: Tensor
    shift: Tensor

    def then(self, outer: ChannelAffine) -> ChannelAffine:
        """outer(self(x)) as one."""
        return ChannelAffine(self.scale * outer.scale, self.shift * outer.scale + outer.shift)


class FoldedNormAct(nn.Module):
    """What is left of a norm+activation layer when everything that the weights fix is a constant.

    Formula: (phi(weight_c norm(x) + bias_c) - mean_c) * inverse_std_c, or, in the place of phi and what follows,
    min(max(weight_c norm(x) + bias_c, lower_c), upper_c). What is None is absent.

    Args:
        channels: C.
        norm: a norm that looks at the input; None where it was a constant affine.
        activation: a name or a function; None for none, and where there are bounds.
        constants: (C,) each, by the names of the formula.
        kernel: "auto", "fused" or "reference", as in NormAct; the fused form needs a GroupNorm.
        dtype: of the constants.

    Shape:
        (N, C, *spatial) -> same, 2 to 5 dims.

    Dtype: that of the input.

    Raises:
        ValueError: wrong shape; kernel "fused" where the fused form does not apply.
    """

    weight: Optional[Tensor]
    bias: Optional[Tensor]
    mean: Optional[Tensor]
    inverse_std: Optional[Tensor]
    lower: Optional[Tensor]
    upper: Optional[Tensor]

    def __init__(
        self,
        channels: int,
        norm: Optional[Norm],
        activation: Optional[Activation],
        constants: Dict[str, Tensor],
        *,
        kernel: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.channels, self.norm, self.kernel = channels, norm, kernel
        self.activation: Activation = "identity" if activation is None else copy.deepcopy(activation)
        for name in ("weight", "bias", "mean", "inverse_std", "lower", "upper"):
            self.register_buffer(name, constants[name].to(dtype) if name in constants else None)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.channels)
        groups = None if self.norm is None else self.norm.groups()
        if groups is not None and self._use_fused(x, groups):
            return kernels.fused_norm_act(
                x, self.weight, self.bias, self.mean, self.inverse_std,
                num_groups=groups.num_groups, grouping=groups.grouping,
                activation=activation_name(self.activation), eps=groups.eps,
            )  # fmt: skip
        y = affine(x, self.weight, self.bias) if self.norm is None else self.norm(x, self.weight, self.bias)
        y = activation_function(self.activation)(y)
        if self.lower is not None:
            y = torch.maximum(y, per_channel(self.lower, y))
        if self.upper is not None:
            y = torch.minimum(y, per_channel(self.upper, y))
        if self.mean is None or self.inverse_std is None:
            return y
        return proxy_normalize(y, self.mean, self.inverse_std)

    def _use_fused(self, x: Tensor, groups: Groups) -> bool:
        if self.kernel == "reference" or self.lower is not None or torch.jit.is_tracing() or is_exporting():
            return False
        if not isinstance(self.activation, str):
            return False
        reason = kernels.why_not_fused(x, groups.num_groups, groups.grouping, self.activation)
        if reason is not None and self.kernel == "fused":
            raise ValueError(f'kernel "fused" does not apply: {reason}; fold a network with kernel "auto"')
        return reason is None

    def extra_repr(self) -> str:
        constants = [name for name, value in self._buffers.items() if value is not None]
        return f"{self.channels}, activation={activation_name(self.activation)}, constants={', '.join(constants)}"


class BorderedConv2d(nn.Conv2d):
    """A zero-padded convolution whose input is short of a constant, which its own padding does not have.

    Formula: out = conv(x) + sum over the taps (i, j) that lie inside the image of taps_o[i, j]; that is
    conv'(scale_c x + shift_c) with zeros around, where conv' has the weights w', scale_c w' = w,
    and taps_o[i, j] = sum_c w'_oc[i, j] shift_c.

    The map that is added depends on the image's size alone: one (O, kh, kw) table times two 0/1 tables that tell
    which taps see the image at which row and column, about 1 / (N C) of the convolution. It is added in place, which
    costs a quarter of a multiply-add over the input, where padding the input with C different constants copies it.

    Args:
        taps: (O, kh, kw).
        args: as nn.Conv2d.
        kwargs: as nn.Conv2d.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').
    """

    taps: Tensor

    def __init__(self, taps: Tensor, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("taps", taps)

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        rows = self._taps_inside(0, input.shape[-2], out.shape[-2])
        columns = self._taps_inside(1, input.shape[-1], out.shape[-1])
        # (H', kh) @ ((O, kh, kw) @ (kw, W')) -> (O, H', W')
        return out.add_(torch.matmul(rows.t(), torch.matmul(self.taps, columns)).to(out.dtype))

    def _taps_inside(self, dim: int, size: int, out_size: int) -> Tensor:
        """1 where tap k (row) of output position i (column) lies inside the image."""
        device = self.taps.device
        # PyTorch keeps the padding as (left, right, top, bottom); "same" may be unequal.
        before = self._reversed_padding_repeated_twice[2 * (1 - dim)]
        taps = torch.arange(self.kernel_size[dim], device=device) * self.dilation[dim] - before
        source = taps.unsqueeze(1) + torch.arange(out_size, device=device) * self.stride[dim]
        return ((source >= 0) & (source < size)).to(self.taps.dtype)


def folded_conv(conv: nn.Module, before: Optional[ChannelAffine], after: Optional[ChannelAffine]) -> nn.Module:
    """Return `before` followed by `after` as one convolution; weight standardization becomes weights.

    Formula: w'_oc = a_o w_oc s_c, bias'_o = a_o (bias_o + sum of w_oc t_c over c and taps) + b_o, with before = (s, t)
    and after = (a, b). Where the convolution pads with zeros and t is there, the sum is over the taps inside the image
    (see BorderedConv2d).

    Args:
        conv: nn.Conv1d, nn.Conv2d, nn.Conv3d or WeightStandardizedConv2d; it is left as it was.
        before: on the input channels, of 2-d convolutions; None: nothing.
        after: on the output channels; None: nothing.

    Dtype: computed in float64; the result has the type of the weights.
    """
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    weight = _plain_weight(conv)
    bias = None if conv.bias is None else conv.bias.detach().double()
    ones = [1] * (weight.dim() - 2)
    taps = None
    if before is not None:
        scale, shift = (by_output_channel(value, conv).reshape(*weight.shape[:2], *ones) for value in before)
        taps = (weight * shift).sum(dim=1)
        weight = weight * scale
    if after is not None:
        weight = weight * after.scale.reshape(-1, 1, *ones)
        taps = None if taps is None else taps * after.scale.reshape(-1, *ones)
        bias = after.shift if bias is None else bias * after.scale + after.shift
    bordered = taps is not None and pads_with_zeros(conv)
    if taps is not None and not bordered:
        constant = taps.flatten(1).sum(dim=1)
        bias = constant if bias is None else bias + constant
    kind: Any = type(conv) if not isinstance(conv, nn.Conv2d) else nn.Conv2d
    if bordered and taps is not None:
        kind = functools.partial(BorderedConv2d, taps.to(conv.weight.dtype))
    new = kind(
        conv.in_channels, conv.out_channels, conv.kernel_size,
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
        bias=bias is not None, padding_mode=conv.padding_mode, device="meta",
    )  # fmt: skip
    return _with_values(new, conv.weight.dtype, weight, bias)


def folded_linear(linear: nn.Linear, before: ChannelAffine) -> nn.Module:
    """Return a linear layer of `before`, whose channels are each repeated where the layer takes flattened maps.

    Formula: w'_oi = w_oi s_c(i), bias'_o = bias_o + sum_i w_oi t_c(i), with c(i) = i // (in_features / C).

    Dtype: computed in float64; the result has the type of the weights.
    """
    positions = linear.in_features // before.scale.numel()
    scale, shift = (value.repeat_interleave(positions) for value in before)
    weight = linear.weight.detach().double()
    bias = (weight * shift).sum(dim=1)
    bias = bias if linear.bias is None else bias + linear.bias.detach().double()
    new = nn.Linear(linear.in_features, linear.out_features, device="meta")
    return _with_values(new, linear.weight.dtype, weight * scale, bias)


def pads_with_zeros(conv: Union[nn.Conv1d, nn.Conv2d, nn.Conv3d]) -> bool:
    """Whether zeros appear around the image; other paddings repeat values of the image itself."""
    return conv.padding_mode == "zeros" and any(conv._reversed_padding_repeated_twice)


def _plain_weight(conv: Union[nn.Conv1d, nn.Conv2d, nn.Conv3d]) -> Tensor:
    weight = conv.weight.detach().double()
    return standardized(weight) if isinstance(conv, WeightStandardizedConv2d) else weight


def by_output_channel(values: Tensor, conv: Union[nn.Conv1d, nn.Conv2d, nn.Conv3d]) -> Tensor:
    """(C_in,) -> (C_out, C_in / groups): what each output channel's weights meet."""
    grouped = values.reshape(conv.groups, 1, -1)
    return grouped.expand(-1, conv.out_channels // conv.groups, -1).reshape(conv.out_channels, -1)


def _with_values(new: Any, dtype: torch.dtype, weight: Tensor, bias: Optional[Tensor]) -> nn.Module:
    """Give a module made on the meta device, which drew no random numbers, its parameters."""
    new.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    new.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    return new
