"""What goes wrong with the images."""


class DataError(Exception):
    """The images are missing, damaged or not laid out as a data set needs them; the message says what to do."""
