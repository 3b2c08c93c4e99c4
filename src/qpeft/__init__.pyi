"""Public names of qpeft, each listed once: `__init__.py` imports them lazily from here, and type checkers read them."""

from . import circuits as circuits
from . import diagnostics as diagnostics
from . import methods as methods
from . import metrics as metrics
from .compare.suggest import Suggestion as Suggestion
from .compare.suggest import suggest as suggest
from .core.adapter_form import ExportReport as ExportReport
from .core.checkpoint import load as load
from .core.checkpoint import save as save
from .core.export import export as export
from .core.generator_holder import GeneratedExportReport as GeneratedExportReport
from .core.generator_registry import register_generator as register_generator
from .core.param_groups import param_groups as param_groups
from .core.serving.pool import AdapterPool as AdapterPool
from .core.set_backend import set_backend as set_backend
from .core.tied_weights import untie_lm_head as untie_lm_head
from .methods.attach.attach import attach as attach
from .methods.bottleneck.config import BottleneckConfig as BottleneckConfig
from .methods.counting import Plan as Plan
from .methods.peft_types import register_method as register_method
from .methods.planning import plan as plan
from .methods.qaa.config import QAAConfig as QAAConfig
from .methods.qaa.report import SiteFeatures as SiteFeatures
from .methods.qaa.report import feature_report as feature_report
from .methods.qpa.config import QPAConfig as QPAConfig
from .methods.qpa.generator import QPAGeneratorConfig as QPAGeneratorConfig
from .methods.quantum_peft.config import QuantumPeftConfig as QuantumPeftConfig
from .methods.quantum_peft.fit_frames import fit_frames as fit_frames
from .methods.sora.callback import SoRACallback as SoRACallback
from .methods.sora.config import SoRAConfig as SoRAConfig
from .methods.sora.export import SoRAExportReport as SoRAExportReport

__version__: str
