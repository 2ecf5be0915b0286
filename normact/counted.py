"""A noun after its number, as reports print it."""


def counted(number: int, noun: str) -> str:
    """Return "1 norm", "2 norms": a regular noun after its number."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
