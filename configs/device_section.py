"""Where an experiment runs: section `device` of the configuration."""

from typing import Optional

from pydantic import Field
from typing_extensions import Literal

from configs.section import Section

DeviceName = Literal["auto", "cpu", "cuda", "ipu", "ipu_model", "ipu_emulator"]


class DeviceConfig(Section):
    """Where it runs and in which precision. Results do not depend on this section beyond rounding."""

    name: DeviceName = Field("auto", description="auto: the best device found")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast; weights stay float32")
    channels_last: bool = Field(False, description="memory layout NHWC")
    compile: bool = Field(False, description="torch.compile of the network")
    threads: Optional[int] = Field(None, gt=0, description="CPU threads per process; default: torch's own choice")
