"""What a network costs: parameters, multiply-adds and the activations that training keeps for the backward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Callable, Dict, List, Set, Tuple

import torch
from torch import nn

from normact.kernels.recompute import recipe_of, recomputed_activations

_MULTIPLYING_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Cost:
    """Measured by `measure_cost`.

    Args:
        parameters: number of trainable values.
        multiply_adds: of all convolutions and linear layers for one image, forward.
        saved_bytes_per_image: bytes kept for the backward pass that each further image of a micro-batch adds.
        saved_bytes_fixed: bytes kept whatever the number of images (standardized weights, statistics of a channel).
    """

    parameters: int
    multiply_adds: int
    saved_bytes_per_image: int
    saved_bytes_fixed: int

    def saved_bytes(self, micro_batch_size: int) -> int:
        """Return bytes kept for the backward pass of a micro-batch."""
        return self.saved_bytes_fixed + micro_batch_size * self.saved_bytes_per_image


def measure_cost(model: nn.Module, image_size: int, *, in_channels: int = 3, images: int = 1) -> Cost:
    """Run the forward pass of training on a copy of the model and count; the model and the random state stay untouched.

    On the meta device no memory is used and nothing is computed, and the saved tensors are those of the plain torch
    operations. On another device they are those of the kernels that really run there, in the model's own data type.

    Args:
        model: on the device, and in the data type, to be measured; not yet made part of a group of processes.
        image_size: side of the square images.
        in_channels: channels of the image.
        images: size of the first of two batches, the second being twice it; where a norm splits batches, its
            norm_batch_size.
    """
    like = next(model.parameters())
    model = copy.deepcopy(model).train()
    counts = []
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        for batch_size in (images, 2 * images):
            shape = (batch_size, in_channels, image_size, image_size)
            x = torch.zeros(shape, device=like.device, dtype=like.dtype)
            counts.append(_count(model, x))
    (multiply_adds, saved), (_, saved_twice) = counts
    per_image = -((saved - saved_twice) // images)  # rounded up
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=multiply_adds // images,
        saved_bytes_per_image=per_image,
        saved_bytes_fixed=saved - images * per_image,
    )


def _count(model: nn.Module, x: torch.Tensor) -> Tuple[int, int]:
    """Multiply-adds and saved bytes of one forward pass over the batch x."""
    multiply_adds: List[int] = []
    sizes: List[int] = []
    saved = SavedStorages(model, sizes.append)

    def count_layer(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        assert isinstance(layer, _MULTIPLYING_LAYERS)
        # Each output value is a sum over one row of the weight: (in_channels / groups) x kernel area, or in_features.
        multiply_adds.append(output.numel() * layer.weight[0].numel())

    layers = [module for module in model.modules() if isinstance(module, _MULTIPLYING_LAYERS)]
    hooks = [layer.register_forward_hook(count_layer) for layer in layers]
    # Layers with recompute=True leave recipes in here, which are counted for what they keep.
    with torch.enable_grad(), recomputed_activations():
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            model(x)
    for hook in hooks:
        hook.remove()
    return sum(multiply_adds), sum(sizes)


class SavedStorages:
    """Sees the storages that autograd saves, each once, without those of parameters and buffers.

    Args:
        model: whose parameters and buffers do not count.
        keep: is given the bytes of each storage as it is first saved.
    """

    def __init__(self, model: nn.Module, keep: Callable[[int], object]) -> None:
        self._keep = keep
        self._own: Set[int] = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        # Holding the tensors keeps their storages alive, so no address is used twice within one count. Here and in what
        # the graph gets back they are detached: a tensor holds its graph, which holds these hooks and what they return,
        # and Python's collector cannot see that circle.
        self._seen: Dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        recipe = recipe_of(tensor)
        for kept in (tensor,) if recipe is None else (recipe.x, recipe.statistics):
            key = _key(kept)
            if key not in self._own and key not in self._seen:
                self._seen[key] = kept.detach()
                self._keep(kept.untyped_storage().nbytes())
        return tensor.detach()

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def _key(tensor: torch.Tensor) -> int:
    # The data pointer would not do: it is 0 for every tensor on the meta device.
    return tensor.untyped_storage()._cdata
