"""Every experiment for IPUs has a plan that is estimated to fit the systems that its first lines name."""

from typing import Any

import pytest

from backends.plan.__main__ import main
from configs import config_names

FOR_IPUS = [name for name in config_names() if name.endswith("_ipu")]


@pytest.mark.slow
@pytest.mark.parametrize("ipus", [4, 16, 64])
@pytest.mark.parametrize("name", FOR_IPUS)
def test_the_planners_proposal_for_a_shipped_config_fits_pods_of_mk2(name: str, ipus: int, capsys: Any) -> None:
    assert main(["--config", name, "--system", "mk2", "--ipus", str(ipus)]) == 0
    assert f"MK2 (GC200): {ipus} IPUs = " in capsys.readouterr().out


def test_a_plan_that_does_not_fit_is_told_by_the_exit_status() -> None:
    command = ["--config", "fashion_rn20_gnpn", "--ipus", "1", "--splits"]
    assert main([*command, "--global-batch-size", "64", "--micro-batch-size", "64"]) == 0
    assert main([*command, "--global-batch-size", "65536", "--micro-batch-size", "65536"]) == 2
