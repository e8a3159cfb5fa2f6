"""How far this process has come, counted in the places where processes wait for each other."""

_arrivals = 0


def arrive() -> None:
    """Note that this process has come to where it may have to wait for the others.

    To be called by all processes at the same places: where all wait for one, it is the one that has come to fewer.
    """
    global _arrivals
    _arrivals += 1


def count_arrivals() -> int:
    """How often this process has called :func:`arrive`."""
    return _arrivals
