"""Numbers and lists in words, as the terminal, the report and messages show them."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 5
DAY_S = 24 * 3600


def number(value: object, none: str = "-") -> str:
    """A float with 4 significant digits, anything else as it is."""
    if value is None:
        return none
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def few(items: Sequence[object], between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    more = len(items) - MOST_NAMED
    return between.join(map(str, items[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 40 s, 2 min 03 s, 12 min, 1 h 05 min, 4.2 days."""
    if seconds < 1:
        return f"{seconds:.1g} s"
    if seconds >= 2 * DAY_S:
        return f"{seconds / DAY_S:.3g} days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def last_word(metric: str) -> str:
    """The name of a metric without its group: `loss_total` of `eval/loss_total`."""
    return metric.rpartition("/")[2]
