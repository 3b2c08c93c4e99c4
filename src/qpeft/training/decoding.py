"""How texts are generated: the options of greedy decoding and beam search, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.checks import MOST, check_fields, option
from qpeft.errors import ConfigError, setting

_MOST_BEAMS = 1000


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding, or beam search with several beams; `check()` validates it."""

    max_new_tokens: int = option(64, "Generate at most this many tokens.", at_least=1, at_most=MOST)
    num_beams: int = option(
        1, "Beams of the search; 1 takes the most likely token each time.", at_least=1, at_most=_MOST_BEAMS
    )
    length_penalty: float = option(
        1.0, "Of beam search: the log-likelihood of a text is divided by its length to this power."
    )
    no_repeat_ngram_size: int = option(
        0, "No sequence of this many tokens occurs twice in the new text; 0 allows it.", at_least=0, at_most=MOST
    )

    def check(self) -> None:
        """Raise ConfigError for a value out of range, or a length penalty without beams."""
        check_fields(self)
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ConfigError(
                f"{setting('length_penalty')} is for beam search; set {setting('num_beams')} above 1, or leave it out"
            )
