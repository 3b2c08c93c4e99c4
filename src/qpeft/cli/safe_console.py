"""A console that shows the control characters of texts, which files of others may contain, instead of obeying them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# escape sequences (C0, C1) and marks that reverse the direction of a text; not tab and newline
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""`text` with escaped control characters: ESC as `\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class SafeConsole(Console):
    """rich's console; control characters of a text are visible, those of rich itself act."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # before columns are measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
