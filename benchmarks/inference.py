"""Time of evaluation: GN+PN folded for inference, as a ratio to batch norm folded into the convolutions.

    python -m benchmarks.inference
    python -m benchmarks.inference --quick      ResNet-20 and one image size of ResNet-50, one batch each

Both are the work of fold_for_inference, on the same network. Batch norm's statistics are constants, so in evaluation it
costs nothing where a convolution is in front of it; group norm still has to compute its statistics.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from backends.host_memory import keep_freed_memory
from benchmarks.networks import BATCH_NORM, GNPN, NCHW_FLOAT32, NUM_GROUPS, VARIANTS, Workload, build_network, images_of
from benchmarks.protocol import measure
from benchmarks.results import RESULTS, write_results
from normact import fold_for_inference

FOLDED_BATCH_NORM, FOLDED_GNPN = "batch norm, folded", "GN+PN, folded"
# network, images, image size, classes
CASES = (("resnet20", 128, 32, 10), ("resnet50", 16, 96, 1000), ("resnet50", 1, 224, 1000), ("resnet20", 1, 32, 10))
QUICK_CASES = CASES[:2]


def evaluations(workload: Workload) -> Dict[str, Callable[[], Tensor]]:
    """Return each variant as a function of no argument, without gradients."""
    models: Dict[str, nn.Module] = {}
    for name, folded_name in ((BATCH_NORM, FOLDED_BATCH_NORM), (GNPN, FOLDED_GNPN)):
        model = with_random_channels(build_network(workload, VARIANTS[name])).eval()
        models[name] = model
        models[folded_name], _ = fold_for_inference(copy.deepcopy(model))
    x = images_of(workload)

    def evaluate(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return model(x)

    return {name: functools.partial(evaluate, model) for name, model in models.items()}


def with_random_channels(model: nn.Module) -> nn.Module:
    """Scales and shifts as after training: none is the neutral value that a folding could drop."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def time_case(case: Tuple[str, int, int, int], repetitions: int) -> Dict[str, Any]:
    """Return one row of the table."""
    network, images, image_size, num_classes = case
    workload = Workload(network, images, image_size, NCHW_FLOAT32, num_classes)
    timings = measure(evaluations(workload), FOLDED_BATCH_NORM, repetitions=repetitions)
    for name, timing in timings.items():
        print(
            f"{workload.name}: {name} {timing.ratio:.3f} [{timing.first_quartile:.3f}-{timing.third_quartile:.3f}] "
            f"{timing.milliseconds:.1f} ms",
            flush=True,
        )
    return {
        "workload": workload.name,
        "timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
    }


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only two cases")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    cases = [case for case in (QUICK_CASES if options.quick else CASES) if options.only in case[0]]
    rows = [time_case(case, options.repetitions) for case in cases]
    write_results("inference", {"repetitions": options.repetitions, "groups": NUM_GROUPS}, rows, folder=options.results)


if __name__ == "__main__":
    main()
