"""Networks whose code asserts, apart from the tests, since pytest rewrites the assertions of these."""

import torch.nn.functional as F
from torch import Tensor, nn


class Asserts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        assert x.shape[1] == 3 and x.shape[2] > 2, f"got {tuple(x.shape)}"
        return F.relu(self.norm(self.conv(x)))


class AssertsOneOfTwo(Asserts):
    """The first need not hold."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3 or x.shape[2] > 2
        return F.relu(self.norm(self.conv(x)))


class AssertsMembership(Asserts):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() in (3, 4)
        return F.relu(self.norm(self.conv(x)))
