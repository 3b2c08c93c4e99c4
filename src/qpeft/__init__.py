"""Fine-tune Hugging Face language models with quantum-generated parameters; hand back a stock PEFT adapter.

Importing qpeft is cheap: names load their modules when first used, and the methods register with PEFT at once
if peft is imported already, otherwise right after it is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from qpeft import circuits as circuits
    from qpeft import diagnostics as diagnostics
    from qpeft.core.checkpoint import load as load
    from qpeft.core.checkpoint import save as save
    from qpeft.core.export import ExportReport as ExportReport
    from qpeft.core.export import export as export
    from qpeft.core.generator_registry import register_generator as register_generator
    from qpeft.core.param_groups import param_groups as param_groups
    from qpeft.core.serving.pool import AdapterPool as AdapterPool
    from qpeft.core.set_backend import set_backend as set_backend
    from qpeft.core.tied_weights import untie_lm_head as untie_lm_head
    from qpeft.methods.attach.attach import attach as attach
    from qpeft.methods.bottleneck.config import BottleneckConfig as BottleneckConfig
    from qpeft.methods.peft_types import register_method as register_method
    from qpeft.methods.planning import Plan as Plan
    from qpeft.methods.planning import plan as plan
    from qpeft.methods.qaa.config import QAAConfig as QAAConfig
    from qpeft.methods.qaa.report import SiteFeatures as SiteFeatures
    from qpeft.methods.qaa.report import feature_report as feature_report
    from qpeft.methods.qpa.config import QPAConfig as QPAConfig
    from qpeft.methods.qpa.settings import QPAGeneratorConfig as QPAGeneratorConfig
    from qpeft.methods.quantum_peft.config import QuantumPeftConfig as QuantumPeftConfig
    from qpeft.methods.quantum_peft.fit_frames import fit_frames as fit_frames
    from qpeft.methods.sora.callback import SoRACallback as SoRACallback
    from qpeft.methods.sora.config import SoRAConfig as SoRAConfig
    from qpeft.methods.sora.export import SoRAExportReport as SoRAExportReport

__version__ = version("qpeft")

_HOME = {
    "AdapterPool": "qpeft.core.serving.pool",
    "BottleneckConfig": "qpeft.methods.bottleneck.config",
    "ExportReport": "qpeft.core.export",
    "Plan": "qpeft.methods.planning",
    "QAAConfig": "qpeft.methods.qaa.config",
    "QPAConfig": "qpeft.methods.qpa.config",
    "QPAGeneratorConfig": "qpeft.methods.qpa.settings",
    "QuantumPeftConfig": "qpeft.methods.quantum_peft.config",
    "SiteFeatures": "qpeft.methods.qaa.report",
    "SoRACallback": "qpeft.methods.sora.callback",
    "SoRAConfig": "qpeft.methods.sora.config",
    "SoRAExportReport": "qpeft.methods.sora.export",
    "attach": "qpeft.methods.attach.attach",
    "export": "qpeft.core.export",
    "feature_report": "qpeft.methods.qaa.report",
    "fit_frames": "qpeft.methods.quantum_peft.fit_frames",
    "load": "qpeft.core.checkpoint",
    "param_groups": "qpeft.core.param_groups",
    "plan": "qpeft.methods.planning",
    "register_generator": "qpeft.core.generator_registry",
    "register_method": "qpeft.methods.peft_types",
    "save": "qpeft.core.checkpoint",
    "set_backend": "qpeft.core.set_backend",
    "untie_lm_head": "qpeft.core.tied_weights",
}

__all__ = [
    "AdapterPool",
    "BottleneckConfig",
    "ExportReport",
    "Plan",
    "QAAConfig",
    "QPAConfig",
    "QPAGeneratorConfig",
    "QuantumPeftConfig",
    "SiteFeatures",
    "SoRACallback",
    "SoRAConfig",
    "SoRAExportReport",
    "__version__",
    "attach",
    "circuits",
    "diagnostics",
    "export",
    "feature_report",
    "fit_frames",
    "load",
    "param_groups",
    "plan",
    "register_generator",
    "register_method",
    "save",
    "set_backend",
    "untie_lm_head",
]


def __getattr__(name: str) -> Any:
    if name in ("circuits", "diagnostics"):
        return import_module(f"qpeft.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'qpeft' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


@wrapt.when_imported("peft")
def _register(_peft: Any) -> None:
    import_module("qpeft.methods.peft_types").register_all()
