"""Settings of the C library's heap, which a process can only have from its start."""

import os
import sys
from contextlib import suppress

# PyTorch asks glibc for aligned blocks, which leave small pieces in front of and behind them. Where
# glibc caches such pieces for small objects, the blocks' memory is not used again (measured:
# docs/training.md). Without these caches, and with a heap that keeps up to 256 MB at its end for
# the next blocks, a step is not slower.
_TUNABLES = {
    "tcache_count": 0,
    "mxfast": 0,
    "mmap_threshold": 32 * 2**20,
    "trim_threshold": 256 * 2**20,
}


def restart_with_settings() -> None:
    """Execute the command `qpeft` again, in this process, with the settings in GLIBC_TUNABLES.

    Nothing is done if that is set already, on other systems than Linux, and under a debugger, a
    profiler or a test.
    """
    plain = (sys.argv, ["-m", "qpeft", *sys.argv[1:]])
    if "GLIBC_TUNABLES" in os.environ or sys.platform != "linux" or sys.orig_argv[1:] not in plain:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(
        f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items()
    )
    with suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
