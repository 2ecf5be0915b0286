"""Short names of norms for the command line: batch, layer, layer+pn, group8+pn, group+ws+pn, instance, none."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from normact import NormActFactory

_NAME = re.compile(r"(batch|layer|instance|group|none)(\d+)?((?:\+(?:ws|pn))*)")
_SHORT = {
    "batch": "BN",
    "layer": "LN",
    "instance": "IN",
    "group": "GN",
    "frn": "FRN",
    "evonorm_s0": "Evo-S0",
    "none": "no norm",
}


def parse_norm(name: str) -> Dict[str, Any]:
    """Return the settings of a norm's short name: norm, proxy, and num_groups where the name has a number.

    Raises:
        ValueError: a name of another form.
    """
    match = _NAME.fullmatch(name)
    suffixes = match.group(3).split("+")[1:] if match else []
    if match is None or len(suffixes) != len(set(suffixes)) or (match.group(2) and match.group(1) != "group"):
        raise ValueError(
            f"norm {name!r}: write batch, layer, instance, group or none, a number of groups after group, then +ws "
            "(weight standardization) and +pn (Proxy Normalization) where wanted; for example layer+pn or group8+ws+pn"
        )
    settings: Dict[str, Any] = {"norm": match.group(1) + ("+ws" if "ws" in suffixes else ""), "proxy": "pn" in suffixes}
    if match.group(2):
        settings["num_groups"] = int(match.group(2))
    return settings


def exact_factory(name: str) -> NormActFactory:
    """Return the factory of a short name as the theory has it: no numerical constants, proxy variable N(0, 1).

    Raises:
        ValueError: a name of another form, or settings that do not go together.
    """
    settings = parse_norm(name)
    if settings["norm"] != "none":
        # torch's batch norm refuses 0; added to a variance near 1 in float32 this is 0.
        settings["eps"] = 1e-12 if settings["norm"].startswith("batch") else 0.0
    if settings["proxy"]:
        settings.update(proxy_eps=0.0, learn_proxy=False)
    return NormActFactory(**settings)


def norm_label(name: str) -> str:
    """LN+PN for layer+pn, GN8+WS for group8+ws, as the paper writes them."""
    settings = parse_norm(name)
    return settings_label(settings["norm"], settings.get("num_groups"), settings["proxy"])


def settings_label(norm: str, num_groups: Optional[int], proxy: bool) -> str:
    """Return the same from the settings of a configuration's norm; norms that the paper lacks keep their names."""
    base, *standardized = norm.split("+")
    label = _SHORT.get(base, base) + str(num_groups or "")
    return label + "".join(f"+{each.upper()}" for each in standardized) + ("+PN" if proxy else "")
