from .backend import Backend as Backend
from .backend import ExactBackend as ExactBackend
from .backend import as_backend as as_backend
from .run import CircuitRun as CircuitRun
from .run import Jobs as Jobs
from .settings import BackendSettings as BackendSettings
