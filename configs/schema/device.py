"""Where and how an experiment is executed: sections `device` and `ipu` of the configuration."""

from typing import Dict, Optional, Tuple, Union

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Annotated, Literal

from configs.schema.section import PathText, Section, list_to_tuple

DeviceName = Literal["auto", "cpu", "cuda", "ipu", "ipu_model", "ipu_emulator"]
ModulePaths = Annotated[Tuple[str, ...], BeforeValidator(list_to_tuple)]


class DeviceConfig(Section):
    """Where a run executes, and how on CPUs and GPUs. Results do not depend on this section beyond rounding."""

    name: DeviceName = Field("auto", description="auto: the best device found")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="bfloat16: autocast; weights stay float32. auto: bfloat16 where the device has instructions for it",
    )
    channels_last: bool = Field(False, description="memory layout NHWC")
    compile: bool = Field(False, description="torch.compile of the network")
    threads: Optional[int] = Field(None, gt=0, description="CPU threads per process; default: torch's own choice")


class IpuConfig(Section):
    """How a run executes on IPUs. Other devices ignore this section; of section `device`, IPUs use name and threads."""

    system: Literal["mk1", "mk2", "bow", "c600", "c2"] = Field(
        "mk2", description="kind of the IPUs: three generations in pods; c600 and c2 are cards"
    )
    ipus: int = Field(
        4, gt=0, le=4096, description="IPUs over all processes, e.g. 16 for a Pod16, 1 for a C600, 2 for a C2"
    )
    splits: Optional[ModulePaths] = Field(
        None, description="modules such as stages.2.0 that begin the next pipeline stage; default: the planner's"
    )
    checkpoints: Optional[ModulePaths] = Field(
        None,
        description="modules whose outputs are kept while the rest is recomputed; default: none if splits are given",
    )
    device_iterations: int = Field(1, gt=0, description="weight updates per call, all at the first one's learning rate")
    precision: Literal["16.16", "16.32", "32.32"] = Field(
        "32.32", description="bits of activations and of weights; statistics and sums of gradients have 32"
    )
    partials: Literal["half", "float"] = Field("float", description="type in which products are summed")
    loss_scaling: float = Field(1.0, gt=0, description="factor that keeps small gradients in float16's range")
    stochastic_rounding: bool = Field(False, description="float16 results are rounded up or down at random")
    stable_norm: bool = Field(True, description="statistics of norms by a slower and more exact method")
    merge_all_reduces: bool = Field(
        True, description="add up the gradients of many weights over replicas in one transfer"
    )
    outer_schedule: Literal["scheduler", "serial", "overlap_cycles", "overlap_memory"] = Field(
        "overlap_memory", description="order of all-reduces and updates of the stages; PopART's own is serial"
    )
    gradient_streams: bool = Field(
        False, description="keep a way from the host to the sums of gradients, which takes memory and has no use here"
    )
    available_memory_proportion: Optional[float] = Field(
        None, gt=0, lt=1, description="share of the memory for temporaries; default: PopTorch's 0.6"
    )
    optimizer_off_chip: bool = Field(False, description="keep the optimizer's state in streaming memory")
    optimizer_sharded: bool = Field(False, description="each replica keeps its share of the optimizer's state")
    io_tiles: Optional[int] = Field(None, ge=32, le=192, description="tiles that transfer while the others compute")
    prefetch_depth: Optional[int] = Field(
        None, gt=0, description="micro-batches that the host sends ahead, with io_tiles; default: PopART's 1"
    )
    popart: Dict[str, Union[bool, int, float, str]] = Field(
        {}, description="further options of PopART's session by name, which must exist and not be set by another field"
    )
    executable_cache: Optional[PathText] = Field(None, description="folder that keeps compiled programs")
    synthetic_data: bool = Field(False, description="transfer no images, to measure speed; results mean nothing")
    profile_dir: Optional[PathText] = Field(None, description="folder for a profile of compilation and execution")

    @field_validator("ipus")
    @classmethod
    def check_ipus(cls, ipus: int) -> int:
        if ipus & (ipus - 1):
            below = 1 << (ipus.bit_length() - 1)
            raise ValueError(f"{ipus} IPUs; systems allocate a power of 2: use {below} or {2 * below}")
        return ipus

    @model_validator(mode="after")
    def check(self) -> "IpuConfig":
        if self.precision == "32.32" and (self.stochastic_rounding or self.partials == "half"):
            raise ValueError(
                "stochastic_rounding and partials half belong to float16; set precision 16.16 or 16.32, or remove them"
            )
        if self.io_tiles is not None and self.io_tiles % 2:
            raise ValueError(f"io_tiles {self.io_tiles} must be even, from 32 to 192")
        if self.prefetch_depth is not None and self.io_tiles is None:
            raise ValueError(
                f"prefetch_depth {self.prefetch_depth} needs tiles that transfer: set io_tiles, or remove it"
            )
        if self.checkpoints is not None and self.splits is None:
            raise ValueError("checkpoints without splits: the planner proposes both; give both (splits: [] for none)")
        return self
