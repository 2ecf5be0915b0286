"""Which IPUs are here: the kind that the configuration names, or an error that says what to set."""

from __future__ import annotations

from typing import List

import pytest

from backends.errors import DeviceError
from backends.ipu.sdk import require_emulator
from configs.schema.device import IpuConfig

require_emulator()

import poptorch  # noqa: E402  the emulator has to be on the path

from backends.ipu.attached import require_ipus  # noqa: E402


@pytest.mark.parametrize(
    ("version", "systems"), [(1, ["mk1", "c2"]), (2, ["mk2", "bow"]), (21, ["mk2", "bow", "c600"])]
)
def test_each_version_of_the_hardware_serves_the_systems_that_have_it(
    version: int, systems: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poptorch, "ipuHardwareVersion", lambda: version)
    for system in ("mk1", "mk2", "bow", "c600", "c2"):
        config = IpuConfig(system=system, ipus=1)
        if system in systems:
            assert require_ipus("ipu", config).processes == 1
        else:
            with pytest.raises(DeviceError, match=f"of version {version}; set ipu.system to {' or '.join(systems)}$"):
                require_ipus("ipu", config)
