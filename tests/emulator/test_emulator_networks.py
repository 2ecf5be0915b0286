"""Every network and norm of this project compiles in strict mode: for training, with the project's own loss."""

import poptorch
import pytest
import torch

from models import NETWORKS, build_model
from normact import NormActFactory
from normact.factory import NORM_KINDS, norm_names
from training.loss import cross_entropy_sum


class Trained(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, labels):
        logits = self.network(images)
        loss = cross_entropy_sum(logits, labels, label_smoothing=0.1) / images.shape[0]
        return poptorch.identity_loss(loss, reduction="none"), (logits.argmax(1) == labels).sum()


def compiles(name, norm_act, **options):
    torch.manual_seed(0)
    model = Trained(build_model(name, num_classes=10, norm_act=norm_act, **options))
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, use_combined_accum=True)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.compile(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))
    assert executor.isCompiled()
    executor.destroy()


@pytest.mark.parametrize("norm", norm_names())
def test_every_norm_compiles(norm):
    takes_proxy = not NORM_KINDS[norm.split("+")[0]].no_proxy_because
    for proxy in [True, False] if takes_proxy else [False]:
        compiles("resnet8", NormActFactory(norm=norm, proxy=proxy, kernel="reference"))


@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_both_methods_of_proxy_normalization_compile_with_strided_groups(method):
    norm_act = NormActFactory(norm="group", num_groups=4, grouping="strided", proxy_method=method, kernel="reference")
    compiles("efficientnet_small_g16", norm_act, drop_rate=0.2, drop_path_rate=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_compiles(name):
    compiles(name, NormActFactory(norm="group", num_groups=4, kernel="reference"))
