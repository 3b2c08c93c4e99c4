"""Tiny models of every family."""

from families import base, batch, family  # noqa: F401
