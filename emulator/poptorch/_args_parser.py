"""PopTorch's name for what binds the arguments of a call, which programs derive classes of their own from."""

from ._executor.arguments import ArgumentBinder as ArgsParser

__all__ = ["ArgsParser"]
