"""What the operators normact::* take, in the order of their schemas (cpu/csrc/operators.cpp)."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from torch import Tensor

Rows = Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor], Optional[Tensor]]


class LayerArguments(NamedTuple):
    """What norm_act, norm_act_again and their backwards take of a layer.

    Attributes:
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        proxy_mean: (C,), or None for no Proxy Normalization.
        proxy_inverse_std: (C,), None together with proxy_mean.
        num_groups: 1 is layer norm, C is instance norm.
        strided: channel c is in group c % G, else in c // (C / G).
        activation: its name.
    """

    weight: Optional[Tensor]
    bias: Optional[Tensor]
    proxy_mean: Optional[Tensor]
    proxy_inverse_std: Optional[Tensor]
    num_groups: int
    strided: bool
    activation: str

    @property
    def rows(self) -> Rows:
        """The values per channel."""
        return self.weight, self.bias, self.proxy_mean, self.proxy_inverse_std


class ProxyArguments(NamedTuple):
    """The parameters that proxy_statistics and its backwards take, (C,) each or None.

    Attributes:
        weight: gamma; None for 1.
        bias: beta; None for 0.
        proxy_beta: None for 0.
        proxy_gamma: None for 0.
    """

    weight: Optional[Tensor]
    bias: Optional[Tensor]
    proxy_beta: Optional[Tensor]
    proxy_gamma: Optional[Tensor]


_KINDS: Dict[str, Any] = {"layer": LayerArguments, "proxy": ProxyArguments}


def called_flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as torch calls an operator: the fields of its argument `layer` or `proxy` one by one."""
    names = list(inspect.signature(function).parameters)
    place = next(place for place, name in enumerate(names) if name in _KINDS)
    kind = _KINDS[names[place]]
    end = place + len(kind._fields)

    def called(*arguments: Any) -> Any:
        return function(*arguments[:place], kind(*arguments[place:end]), *arguments[end:])

    return called
