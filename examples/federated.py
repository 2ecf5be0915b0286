"""Federated averaging in plain torch: clients whose classes differ, with GN, GN+PN and BN.

    python -m examples.federated --fashion-mnist data/fashion-mnist --seeds 6

Each round every client trains the same network on its own images; the server averages parameters, and batch norm's
running statistics with them. GN and GN+PN have no buffers.
"""

import argparse
import copy
from typing import Dict, List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.images import Images, load_images
from examples.minimal import SmallNet, accuracy, parameter_groups
from normact import NormActFactory

NORMS = {"GN": NormActFactory(proxy=False), "GN+PN": NormActFactory(), "BN": NormActFactory(norm="batch", proxy=False)}


def split(labels: Tensor, clients: int, alpha: float) -> List[Tensor]:
    """Return indices of each client's images: each class is shared out by a Dirichlet distribution."""
    parts: List[List[Tensor]] = [[] for _ in range(clients)]
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shares = torch.distributions.Dirichlet(torch.full((clients,), alpha)).sample()
        ends = (shares.cumsum(0)[:-1] * len(members)).long()
        for part, piece in zip(parts, members[torch.randperm(len(members))].tensor_split(ends)):
            part.append(piece)
    return [torch.cat(part) for part in parts]


def local_steps(model: nn.Module, x: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    optimizer = torch.optim.SGD(parameter_groups(model.train(), 1e-4), lr=options.lr, momentum=0.9)
    for _ in range(options.local_steps):
        chosen = torch.randint(0, len(x), (options.batch_size,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), labels[chosen]).backward()
        optimizer.step()


def train(norm: str, seed: int, images: Images, options: argparse.Namespace) -> float:
    torch.manual_seed(seed)
    parts = [part for part in split(images.train_labels, options.clients, options.alpha) if len(part)]
    model = SmallNet(NORMS[norm], images.num_classes)
    for _ in range(options.rounds):
        clients = [copy.deepcopy(model) for _ in parts]
        for client, part in zip(clients, parts):
            local_steps(client, images.train[part], images.train_labels[part], options)
        states = [client.state_dict() for client in clients]
        weights = torch.tensor([len(part) for part in parts]) / sum(len(part) for part in parts)
        mean = {name: sum(w * state[name] for w, state in zip(weights, states)) for name in states[0]}
        model.load_state_dict(mean)
    return accuracy(model, images.test, images.test_labels)


def main(arguments: Optional[Sequence[str]] = None) -> Dict[str, List[float]]:
    parser = argparse.ArgumentParser(description="Federated averaging with GN, GN+PN and BN.")
    parser.add_argument("--fashion-mnist", help="folder of its four files; stripes without it")
    images = {"train_images": 60000, "test_images": 10000}
    training = {"seeds": 1, "first_seed": 0, "clients": 10, "rounds": 30, "local_steps": 20, "batch_size": 32}
    for name, value in {**images, **training}.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet distribution; small: few classes")
    parser.add_argument("--lr", type=float, default=0.02)
    options = parser.parse_args(arguments)
    data = load_images(options.fashion_mnist, options.train_images, options.test_images)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = {norm: [train(norm, seed, data, options) for seed in seeds] for norm in NORMS}
    for norm, values in results.items():
        print(f"{norm}: {torch.tensor(values).mean():.4f} +- {torch.tensor(values).std(correction=0):.4f} of {values}")
    return results


if __name__ == "__main__":
    main()
