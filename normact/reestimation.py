"""Batch norm's statistics re-estimated with the final weights, in place of the running averages of training."""

from __future__ import annotations

from typing import Dict, Iterable, List, Tuple, Union

import torch
from torch import Tensor, nn

from normact.batch_norm import BatchNorm

_TorchBatchNorm = nn.modules.batchnorm._BatchNorm
AnyBatchNorm = Union[BatchNorm, _TorchBatchNorm]


class PooledStatistics:
    """Mean and variance, channel by channel, of all values of several batches.

    n = sum n_b,   mean = sum n_b mean_b / n,   M2 = sum (M2_b + n_b (mean_b - mean)^2),   var = M2 / (n - 1)

    A batch's own mean_b and M2_b (the sum of squared distances from it) are float32, as batch norm's own; they are
    merged in float64.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Shape: (N, C, *spatial)."""
        values = x.double() if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(values, [0] + list(range(2, x.dim())), unbiased=False)
        mean, count = mean.double(), x.numel() // x.shape[1]
        total = self.count + count
        difference = mean - self.mean.to(mean.device)
        self.squares = self.squares.to(mean.device) + var.double() * count
        self.squares = self.squares + difference**2 * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + difference * (count / total)
        self.count = total

    @property
    def unbiased_var(self) -> Tensor:
        return self.squares / max(1, self.count - 1)


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by those of `batches`, with the weights as they are.

    Each layer's new mean and (unbiased) variance are of all values that reach it, over the images and positions of all
    batches together (`PooledStatistics`): every image counts the same and no momentum is involved. While they are
    taken, batch norms normalize by the statistics of the whole batch that passes, whatever their norm_batch_size and
    without other processes, and all else is in evaluation mode (no dropout, no stochastic depth). So give large
    batches: what a layer sees then hardly differs from what it will see in evaluation. Where a run was trained with
    small normalization batches, this takes away what its running averages lack (they are noisy, of weights that were
    changing, and means within batches), and leaves what small batches did to the weights.

    Args:
        model: holds BatchNorm of this package or of torch; left in evaluation mode. Without one nothing is computed.
        batches: inputs of the model, two images or more each.

    Returns: the number of batch norms.

    Raises:
        ValueError: there is no batch.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2; Wu and Johnson, "Rethinking 'Batch' in
        BatchNorm", 2021, section 3.
    """
    norms: List[AnyBatchNorm] = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) or (isinstance(module, _TorchBatchNorm) and module.running_mean is not None)
    ]
    model.eval()
    if not norms:
        return 0
    statistics: Dict[nn.Module, PooledStatistics] = {norm: PooledStatistics() for norm in norms}
    ours = [norm for norm in norms if isinstance(norm, BatchNorm)]
    kept: List[Tuple[BatchNorm, object, object]] = [(norm, norm.norm_batch_size, norm.process_group) for norm in ours]
    hooks = [norm.register_forward_pre_hook(lambda module, inputs: statistics[module].add(inputs[0])) for norm in norms]
    try:
        for norm in norms:
            norm.train()
        for norm in ours:
            norm.norm_batch_size, norm.process_group = None, None
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, norm_batch_size, process_group in kept:
            norm.norm_batch_size, norm.process_group = norm_batch_size, process_group  # type: ignore[assignment]
        model.eval()
    for norm in norms:
        if statistics[norm].count == 0:
            raise ValueError("no batch of images reached the batch norms; give one or more")
        assert norm.running_mean is not None and norm.running_var is not None  # as chosen above
        norm.running_mean.copy_(statistics[norm].mean)
        norm.running_var.copy_(statistics[norm].unbiased_var)
    return len(norms)
