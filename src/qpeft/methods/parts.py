"""Public names of `qpeft.methods` for defining a method; they need torch and peft."""

from qpeft.core.adapter_form import AdapterForm as AdapterForm
from qpeft.core.adapter_form import ExportReport as ExportReport
from qpeft.core.adapter_form import StockAdapter as StockAdapter
from qpeft.core.binding import Slot as Slot
from qpeft.core.config import GeneratedConfig as GeneratedConfig
from qpeft.core.config import GeneratedLoraConfig as GeneratedLoraConfig
from qpeft.core.config import MethodName as MethodName
from qpeft.core.generator import CircuitModule as CircuitModule
from qpeft.core.generator import FullPrecision as FullPrecision
from qpeft.core.generator import Generator as Generator
from qpeft.core.generator import fingerprint as fingerprint
from qpeft.core.load_checks import check_adapter as check_adapter
from qpeft.core.lora_init import draw_initial as draw_initial
from qpeft.core.model_card import Card as Card
from qpeft.core.own_tuner import OwnTuner as OwnTuner
from qpeft.core.scaled_parameter import Folded as Folded
from qpeft.core.seeded_init import SeededInit as SeededInit
from qpeft.core.slots import find_slots as find_slots
from qpeft.core.slots import lora_slots as lora_slots
from qpeft.core.targets import check_is_matrix as check_is_matrix
from qpeft.core.targets import check_target_modules as check_target_modules
from qpeft.core.tuner import GeneratedMixin as GeneratedMixin
from qpeft.core.weights_hash import SealedConfig as SealedConfig
from qpeft.generator_config import GeneratorConfig as GeneratorConfig
