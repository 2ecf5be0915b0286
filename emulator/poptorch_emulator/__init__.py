"""The distribution that brings the emulated packages poptorch, popdist and popart, and a plugin for pytest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["DISTRIBUTION", "__version__"]

DISTRIBUTION = "normact-poptorch-emulator"

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # used from its folder, without being installed
    __version__ = "0+uninstalled"
