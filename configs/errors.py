"""The error of a configuration that cannot be used."""

from configs.exit_codes import REFUSED, ExplainedError


class ConfigError(ExplainedError, ValueError):
    """A configuration that cannot be run. The message says what was received, the rule, and what to do."""

    exit_code = REFUSED
