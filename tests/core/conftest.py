"""Tiny models of every family."""

from families import base, batch, family, models  # noqa: F401
