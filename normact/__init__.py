"""Group, layer, instance and batch norm with Proxy Normalization, as one layer; needs torch alone."""

from normact.convert import convert_norm
from normact.convert.report import ConversionReport
from normact.factory import NormActFactory, affine_parameter_names
from normact.fold import fold_for_inference
from normact.fold.report import FoldReport
from normact.kernels.operators import has_fused_kernels
from normact.kernels.recompute import recompute_activations
from normact.norm_act import NormAct
from normact.norms import share_statistics
from normact.proxy import proxy_statistics
from normact.reestimation import reestimate_statistics
from normact.weight_standardization import WeightStandardizedConv2d

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "FoldReport",
    "NormAct",
    "NormActFactory",
    "WeightStandardizedConv2d",
    "affine_parameter_names",
    "convert_norm",
    "fold_for_inference",
    "has_fused_kernels",
    "proxy_statistics",
    "recompute_activations",
    "reestimate_statistics",
    "share_statistics",
]
