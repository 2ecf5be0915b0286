"""The form of a configuration: config.py has the whole, learning.py and device.py their sections."""

from configs.schema.config import BatchConfig, Config, DataConfig, ModelConfig, NormConfig, RunConfig
from configs.schema.device import DeviceConfig, IpuConfig
from configs.schema.learning import AveragingConfig, OptimizerConfig, RegularizationConfig, ScheduleConfig

__all__ = [
    "AveragingConfig",
    "BatchConfig",
    "Config",
    "DataConfig",
    "DeviceConfig",
    "IpuConfig",
    "ModelConfig",
    "NormConfig",
    "OptimizerConfig",
    "RegularizationConfig",
    "RunConfig",
    "ScheduleConfig",
]
