"""The `qpeft` command: one module per command, light until a command runs."""
