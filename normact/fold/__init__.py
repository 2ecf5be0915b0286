"""Folding: an evaluation copy of a network in which everything that its weights fix is a constant."""

from normact.fold.fold_for_inference import fold_for_inference
from normact.fold.report import FoldReport

__all__ = ["FoldReport", "fold_for_inference"]
