"""The version of PopTorch that is emulated."""

__version__ = "3.4.0"
