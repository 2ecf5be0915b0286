"""A noun after its number, as messages print it."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 thread", "2 threads", "1,404 steps".

    Args:
        number: how many.
        noun: what is counted, in the singular.
        plural: where it is not the noun and an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
