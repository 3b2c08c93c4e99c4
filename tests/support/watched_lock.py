"""A lock that reports when a thread waits for it."""

import threading


class Watched:
    """Replaces an RLock; `waited` is set when a thread begins to wait."""

    def __init__(self):
        self.lock, self.waited = threading.RLock(), threading.Event()

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.waited.set()
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()
