"""Group, layer, instance and batch norm with Proxy Normalization, as one layer; needs torch alone."""

from proxynorm.convert import convert_norm
from proxynorm.convert_report import ConversionReport
from proxynorm.factory import NormActFactory, affine_parameter_names
from proxynorm.fold import fold_for_inference
from proxynorm.fold_report import FoldReport
from proxynorm.kernels.operators import has_fused_kernels
from proxynorm.kernels.recompute import rebuild_activations
from proxynorm.norm_act import NormAct
from proxynorm.norms import share_statistics
from proxynorm.proxy import proxy_statistics
from proxynorm.reestimation import reestimate_statistics
from proxynorm.weight_standardization import WeightStandardizedConv2d

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
    "rebuild_activations",
    "reestimate_statistics",
    "share_statistics",
]
