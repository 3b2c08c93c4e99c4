from .result import TrainResult as TrainResult
from .run import train as train
from .settings import TrainSettings as TrainSettings
