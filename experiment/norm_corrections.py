"""What else to change where one setting of the norm does not go with the others: all of it in one message."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List

from configs import Config
from normact import NormActFactory

_LEFT_OUT = re.compile(r"leave (\w+) out$")
_USUAL_NORM_BATCH = 32


def corrections(config: Config, given: Dict[str, Any]) -> str:
    """Return a sentence with the options that make the settings fit, or nothing where no leaving out does.

    Args:
        config: the whole configuration.
        given: settings of the norm that do not go together, by their names in section `norm`.
    """
    given, batch = dict(given), config.batch
    is_batch = config.norm.name.split("+")[0] == "batch"
    norm_batch = math.gcd(_USUAL_NORM_BATCH, batch.global_batch_size) if is_batch else 1
    options: List[str] = []
    for _ in range(len(given) + 1):
        try:
            NormActFactory(norm=config.norm.name, norm_batch_size=norm_batch if is_batch else None, **given)
        except ValueError as error:
            named = _LEFT_OUT.search(str(error))
            if named is None or named[1] not in given:
                return ""
            del given[named[1]]
            options.append("norm.proxy=false" if named[1] == "proxy" else f"norm.{named[1]}=null")
        else:
            break
    if is_batch != (batch.norm_batch_size > 1):
        options.append(f"batch.norm_batch_size={norm_batch}")
    changes = " ".join(f"--set {option}" for option in [f"norm.name={config.norm.name}", *options])
    return f". All that goes with this norm: {changes} (null leaves a setting out)"
