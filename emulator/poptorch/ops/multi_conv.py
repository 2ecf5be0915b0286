"""MultiConv: convolutions that an IPU runs together; here its settings are checked and have no effect."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple, Union

import torch

from .._device import device_run
from .._options.sub_options import require_type
from ..enums import MultiConvPlanType
from ..errors import backend_error


class MultiConv:
    """Context whose convolutions, independent of each other, share the tiles."""

    def __init__(self) -> None:
        self._available_memory_proportions: Optional[Tuple[Any, ...]] = None
        self._partials_types: Optional[Tuple[Any, ...]] = None
        self._enable_conv_ditherings: Optional[Tuple[Any, ...]] = None
        self._plan_type: Optional[MultiConvPlanType] = None
        self._per_conv_reserved_tiles: Optional[int] = None
        self._cycle_back_off: Optional[float] = None

    def availableMemoryProportions(self, value: Union[float, List[float]]) -> MultiConv:
        """Share of memory for temporary data, of all or of each convolution."""
        shares = None if value is None else _as_tuple(value)
        if shares is not None and not (shares and all(isinstance(share, float) for share in shares)):
            raise AssertionError(f"Invalid available memory proportion! Got {value!r}")
        self._available_memory_proportions = shares
        return self

    def partialsTypes(self, value: Union[torch.dtype, List[torch.dtype]]) -> MultiConv:
        """Type of partial sums, of all or of each convolution."""
        types = _as_tuple(value)
        if any(dtype not in (torch.float32, torch.float16) for dtype in types):
            raise ValueError(f"Invalid partials types. Expecting torch.float or torch.half, got {value!r}")
        self._partials_types = types
        return self

    def enableConvDithering(self, value: Union[bool, List[bool]]) -> MultiConv:
        """Whether to spread over tiles, all or each convolution."""
        flags = None if value is None else _as_tuple(value)
        if flags is not None and not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(f"value must be bool or list of bools, got {value!r}")
        self._enable_conv_ditherings = flags
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Run the convolutions in parallel or one after the other."""
        if value is not None and not isinstance(value, MultiConvPlanType):
            raise AssertionError(f"Invalid plan type! Got {value!r}")
        self._plan_type = value
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Tiles that each convolution gets at least."""
        require_type(value, int, "perConvReservedTiles")
        self._per_conv_reserved_tiles = value
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """Set how much slower than the fastest plan a plan may be."""
        require_type(value, float, "cycleBackOff")
        self._cycle_back_off = value
        return self

    def __enter__(self) -> None:
        """Begin a MultiConv; its settings have no effect here.

        Raises:
            Error: inside another MultiConv.
        """
        run = device_run.current
        if run is not None and run.is_tracing:
            if run.open_multi_conv:
                raise backend_error("Nested poptorch.MultiConv is not supported.")
            run.open_multi_conv, run.convolutions = True, 0

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        """End the MultiConv.

        Raises:
            Error: there was no convolution.
        """
        run = device_run.current
        if run is not None and run.is_tracing:
            run.open_multi_conv = False
            if type is None and not run.convolutions:
                raise backend_error("Unexpected end_multi_conv, is the IR malformed? A MultiConv needs a convolution")


def _as_tuple(value: Any) -> Tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
