"""The feed-forward adapter."""
