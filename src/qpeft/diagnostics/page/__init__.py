"""A diagnosis as one HTML file that opens offline, in the look of the comparison's report."""

from qpeft.diagnostics.page.page import write_page

__all__ = ["write_page"]
