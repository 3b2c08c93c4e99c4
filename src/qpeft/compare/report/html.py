"""What every page of ours is made with: templates, styles and script that lie in this package."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = "qpeft.compare.report"


def render(template: str, context: dict[str, Any], package: str = _HERE) -> str:
    """The page of `template`, which lies in `package` and may extend `layout.html.j2` and import `parts.html.j2`."""
    places = [str(files(name)) for name in dict.fromkeys((package, _HERE))]
    found = Environment(
        loader=FileSystemLoader(places),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"css": Markup(_own("style.css")), "script": Markup(_own("table.js")), "version": version("qpeft")}
    return found.get_template(template).render(**shared, **context)


def _own(name: str) -> str:
    return (files(_HERE) / name).read_text(encoding="utf-8").strip()
