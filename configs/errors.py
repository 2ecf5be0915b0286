"""The error of a configuration that cannot be used."""


class ConfigError(ValueError):
    """A configuration that cannot be run. The message says what was received, the rule, and what to do."""
