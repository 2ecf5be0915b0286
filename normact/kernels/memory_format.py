"""In which order of dims the kernels read and write."""

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the format of the kernels' inputs and results: channels_last where x is, else contiguous."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if channels_last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format
