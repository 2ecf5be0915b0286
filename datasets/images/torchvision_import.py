"""The one way this project imports torchvision.

A torchvision wheel that was built for CUDA has its compiled operators in a library that a CPU-only PyTorch cannot load.
torchvision then still registers shapes for `torchvision::nms` while it is imported, and fails because nobody declared
that operator. Image reading and transforms need none of these operators, so this module declares the two that
torchvision asks for (they raise when called) and imports it again. With matching wheels it does nothing at all.

    from datasets.images.torchvision_import import torchvision
"""

from typing import List

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A torch.library.Library takes its declarations back when it is collected, so it lives as long as this module.
LIBRARIES: List[torch.library.Library] = []


def operator_missing(*arguments: object) -> torch.Tensor:
    raise NotImplementedError(
        "torchvision's compiled operators are not available: the installed torchvision does not match the installed "
        f"PyTorch {torch.__version__}; install the torchvision build of the same kind (CPU or CUDA)"
    )


def declare_operators() -> None:
    """Declare torchvision::nms and torchvision::qnms, which raise when called."""
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in SCHEMAS.items():
        library.define(schema)
        library.impl(name, operator_missing, "CPU")
    LIBRARIES.append(library)


try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    declare_operators()
    import torchvision

__all__ = ["torchvision"]
