"""A plugin for pytest: tests of programs for IPUs that run on the emulator.

* What a test leaves behind is cleared away before the next one: its executors are destroyed, its hooks around
  compilation and its log level undone. Executors of fixtures with a wider scope live as long as these.
* Tests marked ipu_hardware need a real IPU, and are skipped.
* --poptorch-log-level, or poptorch_log_level in the configuration, sets how much PopTorch's logger says.
"""

from __future__ import annotations

import sys
from typing import Any, Iterator, List

import pytest

HARDWARE = "ipu_hardware"
LEVEL = "poptorch_log_level"


def pytest_addoption(parser: Any) -> None:
    """Add the log level, as an option and as a setting."""
    group = parser.getgroup("poptorch", "emulated PopTorch")
    text = "TRACE, DEBUG, INFO, WARN, ERR or OFF"
    group.addoption("--poptorch-log-level", default=None, metavar="LEVEL", help=f"log level of PopTorch: {text}")
    parser.addini(LEVEL, f"log level of PopTorch: {text}", default="")


def pytest_configure(config: Any) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{HARDWARE}: needs a real IPU; skipped on the emulator")


def pytest_collection_modifyitems(config: Any, items: List[Any]) -> None:
    """Skip what needs hardware."""
    reason = "needs a real IPU: PopTorch is emulated here"
    for item in items:
        if item.get_closest_marker(HARDWARE) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _fresh_poptorch(request: Any) -> Iterator[None]:
    """Destroy the executors of a test, and undo its hooks and log level. Imports nothing by itself."""
    level = request.config.getoption("--poptorch-log-level") or request.config.getini(LEVEL)
    if level:
        from poptorch import setLogLevel

        setLogLevel(level)
    before = _remains() if "poptorch" in sys.modules else None
    yield
    if "poptorch" in sys.modules:
        (_remains(is_fresh=True) if before is None else before).restore()


def _remains(**arguments: Any) -> Any:
    from poptorch._executor.cleanup import Remains

    return Remains(**arguments)
