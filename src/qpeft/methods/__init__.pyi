"""Public names of `qpeft.methods`, each listed once: `__init__.py` imports them lazily from
here.
"""

from ..core.config import AdapterConfig as AdapterConfig
from ..core.config import GeneratedConfig as GeneratedConfig
from ..core.config import MethodName as MethodName
from ..core.config import refuse_lora_options as refuse_lora_options
from ..core.folded import Folded as Folded
from ..core.generated_tuner import GeneratedMixin as GeneratedMixin
from ..core.generator import CircuitModule as CircuitModule
from ..core.generator import FullPrecision as FullPrecision
from ..core.generator import Generator as Generator
from ..core.generator import fingerprint as fingerprint
from ..core.own_tuner import OwnTuner as OwnTuner
from ..core.seeded_init import SeededInit as SeededInit
from ..core.slots import Slot as Slot
from ..core.stock_adapter import StockAdapter as StockAdapter
from ..generator_config import GeneratorConfig as GeneratorConfig
from .method import Method as Method
from .method import Trains as Trains
from .registry import get as get
from .registry import hosts as hosts
from .registry import keys as keys
from .registry import of_config as of_config
from .registry import records as records
from .registry import register as register
