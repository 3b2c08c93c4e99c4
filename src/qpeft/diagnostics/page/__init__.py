"""The page of a diagnosis: one HTML file that opens offline, in the style of the report of `qpeft compare`."""

from qpeft.diagnostics.page.page import write_page

__all__ = ["write_page"]
