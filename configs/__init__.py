"""WHAT a run is: the schema of an experiment, its batch plan, and one YAML per experiment."""

from configs.batch import BatchPlan, plan_batch
from configs.errors import ConfigError
from configs.expected import Expected, expected_accuracy, expected_of_run
from configs.load import config_name, config_names, dump_config, find_config, load_config, own_seed
from configs.schema import Config

__all__ = [
    "BatchPlan",
    "Config",
    "ConfigError",
    "Expected",
    "config_name",
    "config_names",
    "dump_config",
    "expected_accuracy",
    "expected_of_run",
    "find_config",
    "load_config",
    "own_seed",
    "plan_batch",
]
