"""One line of the table."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Row:
    """What qpeft and another program need for the same thing; `ratio` is the other over qpeft, with its quartiles.

    Seconds or bytes are medians, the ratio is the median of the rounds' own ratios. Without a ratio, `note` says why.
    """

    what: str
    other: str
    unit: str = "s"
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    of_roofline: float | None = None
    note: str = ""
    refused: bool = False

    @staticmethod
    def of_samples(what: str, other: str, ours: list[float], theirs: list[float], **more: object) -> Row:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        return Row(
            what,
            other,
            ours=median(ours),
            theirs=median(theirs),
            ratio=median(ratios),
            quartiles=(low, high),
            rounds=len(ratios),
            **more,  # pyright: ignore[reportArgumentType]
        )
