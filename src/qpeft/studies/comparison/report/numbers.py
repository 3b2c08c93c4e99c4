"""Figures as a reader wants them: few digits, all of them meant, units in the header, a real minus sign."""

from __future__ import annotations

import math

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


def number(value: float | None, decimals: int | None = None) -> str:
    """A number with a thousands separator; `decimals` None means none for a whole number, else four digits in all."""
    if value is None:
        return MISSING
    if decimals is None:
        decimals = 0 if value == int(value) else places(None, value)
    return f"{value:,.{decimals}f}".replace("-", "\u2212")


def spread(mean: float, sd: float | None) -> str:
    """`3.0512 ± 0.0041`; the mean alone where there is one seed."""
    if sd is None:
        return number(mean)
    if sd == 0:
        return f"{number(mean)} ± 0"
    return f"{number(mean, places(sd, mean))} ± {number(sd, places(sd, mean))}"


def signed(value: float, decimals: int) -> str:
    """`−0.061`, `+0.061`; a difference that rounds to zero has no sign."""
    text = number(abs(value), decimals)
    if not float(text.replace(",", "")):
        return text
    return ("\u2212" if value < 0 else "+") + text


def interval(mean: float, low: float | None, high: float | None) -> str:
    """`−0.061 [−0.103, −0.019]`."""
    if low is None or high is None:
        return signed(mean, places(None, mean))
    decimals = places((high - low) / 2, mean)
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
    """A learning rate: `1e-3`, `3e-4`."""
    if value is None:
        return MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "\u2212")
