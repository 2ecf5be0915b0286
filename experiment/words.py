"""Numbers of a run as they are printed."""

from typing import Optional


def speed_text(images_per_second: Optional[float]) -> str:
    """Return the speed of training; None where nothing but the first, compiling step was there to time."""
    return "not timed" if images_per_second is None else f"{images_per_second:,.0f} images/s"


def time_left(seconds: float) -> str:
    """Return what is left of a run, in words that end in "left", or "finished"."""
    if seconds <= 0:
        return "finished"
    if seconds < 60:
        return "under 1 min left"
    return f"{seconds / 60:.0f} min left" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h left"
