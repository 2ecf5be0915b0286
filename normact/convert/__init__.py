"""Conversion: the norms of any network replaced by norm+activation layers with Proxy Normalization."""

from normact.convert.convert_norm import convert_norm
from normact.convert.report import ConversionReport

__all__ = ["ConversionReport", "convert_norm"]
