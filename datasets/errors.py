"""What goes wrong with the images."""

from configs.exit_codes import DATA, ExplainedError


class DataError(ExplainedError):
    """The images are missing, damaged or not laid out as a data set needs them; the message says what to do."""

    exit_code = DATA


class StoreError(DataError):
    """The place that holds the images cannot be read. That says nothing about an image, so none is replaced for it."""
