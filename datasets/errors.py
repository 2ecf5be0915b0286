"""What goes wrong with the images."""


class DataError(Exception):
    """The images are missing, damaged or not laid out as a data set needs them; the message says what to do."""


class StoreError(DataError):
    """The place that holds the images cannot be read. That says nothing about an image, so none is replaced for it."""
