"""Public names of the laboratory, each listed once."""

from . import compare as compare
from . import demo as demo
from . import diagnose as diagnose
from . import metrics as metrics
from .settings import RunSettings as RunSettings
from .training.fit import train as train
from .training.run_folder import TrainResult as TrainResult
