"""Adapter folders: compact ones, exported ones, and what is checked on the way in and out."""
