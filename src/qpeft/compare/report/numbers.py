"""Figures as a reader wants them: few digits, all of them meant, units in the header, a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median_high

MISSING = "\u2013"


def count(value: float | None) -> str:
    """`294912` -> `294,912`."""
    return MISSING if value is None else f"{value:,.0f}"


def short(value: float) -> str:
    """`294912` -> `295k`, for an axis."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def places(spread: float | None, value: float = 1.0) -> int:
    """Decimals that show two digits of `spread` (at most 5), or four digits of `value` where there is no spread."""
    if not spread:
        return 3 if value == 0 else max(0, min(5, 3 - math.floor(math.log10(abs(value)))))
    return max(0, min(5, 1 - math.floor(math.log10(abs(spread)))))


def shared_places(spreads: Iterable[float | None]) -> int | None:
    """The decimals that show two digits of most of `spreads`, for numbers beneath each other."""
    known = [places(spread) for spread in spreads if spread]
    return median_high(known) if known else None


def half_width(low: float | None, high: float | None, factor: float = 1.0) -> float | None:
    """Of an interval, if there is one."""
    return None if low is None or high is None else factor * (high - low) / 2


def number(value: float | None, decimals: int | None = None) -> str:
    """A number with a thousands separator; `decimals` None means none for a whole number, else four digits in all."""
    if value is None:
        return MISSING
    if decimals is None:
        decimals = 0 if value == int(value) else places(None, value)
    return f"{value:,.{decimals}f}".replace("-", "\u2212")


def spread(mean: float, sd: float | None, decimals: int | None = None) -> str:
    """`3.0512 ± 0.0041`, by default with two digits of the spread; the mean alone where there is one seed."""
    if sd and decimals is None:
        decimals = places(sd, mean)
    if not sd:
        return number(mean, decimals) + (" ± 0" if sd == 0 else "")
    shown = number(sd, decimals)
    if not float(shown.replace(",", "")):
        shown = f"<{number(10.0 ** -(decimals or 0), decimals)}"  # small is not none
    return f"{number(mean, decimals)} ± {shown}"


def signed(value: float, decimals: int) -> str:
    """`−0.061`, `+0.061`; `−0.000` lies below zero, and zero itself has no sign."""
    return {-1: "\u2212", 0: "", 1: "+"}[(value > 0) - (value < 0)] + number(abs(value), decimals)


def interval(mean: float, low: float | None, high: float | None, decimals: int | None = None) -> str:
    """`−0.061 [−0.103, −0.019]`: two digits of the interval's half, or `decimals`, if they show at least one."""
    if low is None or high is None:
        return signed(mean, places(None, mean) if decimals is None else decimals)
    two_digits = places((high - low) / 2, mean)
    decimals = two_digits if decimals is None else max(decimals, two_digits - 1)
    return f"{signed(mean, decimals)} [{signed(low, decimals)}, {signed(high, decimals)}]"


def size(value: float | None) -> str:
    """Bytes in decimal units: `1.2 MB`."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def rate(value: float | None) -> str:
    """A learning rate: `0.1`, `0.003`, and below a thousandth `3e-4`."""
    if value is None:
        return MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    written = f"{float(mantissa):g}e{int(exponent)}" if value < 1e-3 else f"{float(f'{value:.3g}'):g}"
    return written.replace("-", "\u2212")
