"""Public names of qpeft, each listed once: `__init__.py` imports them lazily from here, and type
checkers read them.
"""

from . import circuits as circuits
from . import methods as methods
from .core.capture import capture as capture
from .core.checkpoint import load as load
from .core.checkpoint import save as save
from .core.export import ExportReport as ExportReport
from .core.export import export as export
from .core.param_groups import param_groups as param_groups
from .core.pool import AdapterPool as AdapterPool
from .core.set_backend import set_backend as set_backend
from .core.targets import untie_lm_head as untie_lm_head
from .methods.attach import attach as attach
from .methods.bottleneck.model import BottleneckConfig as BottleneckConfig
from .methods.cua.model import CUAConfig as CUAConfig
from .methods.plan import Plan as Plan
from .methods.plan import plan as plan
from .methods.qaa.model import QAAConfig as QAAConfig
from .methods.qpa.config import QPAConfig as QPAConfig
from .methods.qpa.settings import QPAGeneratorConfig as QPAGeneratorConfig
from .methods.quanta.model import QuanTAConfig as QuanTAConfig
from .methods.quantum_peft.config import QuantumPeftConfig as QuantumPeftConfig
from .methods.quantum_peft.fit_frames import fit_frames as fit_frames
from .methods.quic.model import QuICConfig as QuICConfig
from .methods.sora.model import SoRAConfig as SoRAConfig
from .methods.sora.threshold import SoRACallback as SoRACallback
from .methods.suggest import Suggestion as Suggestion
from .methods.suggest import suggest as suggest

__version__: str
