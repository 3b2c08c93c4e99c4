from .backend import Backend, ExactBackend
from .jobs import Jobs
from .run import CircuitRun
from .settings import BackendSettings

__all__ = ["Backend", "BackendSettings", "CircuitRun", "ExactBackend", "Jobs"]
