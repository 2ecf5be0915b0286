"""One step of the series, in a process of its own.

    python -m backends.ipu_report.step NAME DEVICE SYSTEM IPUS

Its last line of output is MARK and what it found, as JSON. An error of the device ends it as any other.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, List

from backends import choose_device
from backends.ipu_report.series import MARK, SPEED_EXPERIMENTS
from configs.schema.device import DeviceConfig, IpuConfig


def main(arguments: List[str]) -> int:
    """Run the step and print what it found."""
    name, device, system, ipus = arguments
    print(MARK + json.dumps(run_step(name, device, system, int(ipus))))
    return 0


def run_step(name: str, device: str, system: str, ipus: int) -> Dict[str, Any]:
    """Return what the step found. Raises whatever it failed with."""
    if name.startswith("speed:"):
        from backends.ipu_report.runs import measure_speed

        experiment = name.split(":", 1)[1]
        return measure_speed(device, system, ipus, experiment, is_network=experiment in SPEED_EXPERIMENTS[True])
    if name == "updates":
        from backends.ipu_report.runs import compare_updates

        return compare_updates(device, system)
    # Choosing the device finds PopTorch, the IPUs and their kind, or says what is missing.
    choose_device(DeviceConfig(name=device), IpuConfig(system=system, ipus=ipus)).close()  # type: ignore[arg-type]
    from backends.ipu_report.probes import probe_attach, probe_compile, probe_layer

    if name == "attach":
        return probe_attach(system)
    return {"compile": probe_compile, "layer": probe_layer}[name](device == "ipu_model")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
