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
    from qpeft.adapters.attached.attach import attach as attach
    from qpeft.adapters.backend import set_backend as set_backend
    from qpeft.adapters.bottleneck.model import BottleneckConfig as BottleneckConfig
    from qpeft.adapters.fit_frames import fit_frames as fit_frames
    from qpeft.adapters.folders.checkpoint import load as load
    from qpeft.adapters.folders.checkpoint import save as save
    from qpeft.adapters.folders.export import ExportReport as ExportReport
    from qpeft.adapters.folders.export import export as export
    from qpeft.adapters.optimizer import param_groups as param_groups
    from qpeft.adapters.qaa.model import QAAConfig as QAAConfig
    from qpeft.adapters.qaa.report import SiteFeatures as SiteFeatures
    from qpeft.adapters.qaa.report import feature_report as feature_report
    from qpeft.adapters.qpa import QPAConfig as QPAConfig
    from qpeft.adapters.quantum_peft import QuantumPeftConfig as QuantumPeftConfig
    from qpeft.adapters.registry import register_method as register_method
    from qpeft.adapters.serving.pool import AdapterPool as AdapterPool
    from qpeft.adapters.sora.callback import SoRACallback as SoRACallback
    from qpeft.adapters.sora.export import SoRAExportReport as SoRAExportReport
    from qpeft.adapters.sora.model import SoRAConfig as SoRAConfig
    from qpeft.adapters.tied import untie_lm_head as untie_lm_head
    from qpeft.generators.registry import register_generator as register_generator
    from qpeft.generators.settings import QPAGeneratorConfig as QPAGeneratorConfig
    from qpeft.planning import Plan as Plan
    from qpeft.planning import plan as plan

__version__ = version("qpeft")

_HOME = {
    "AdapterPool": "qpeft.adapters.serving.pool",
    "BottleneckConfig": "qpeft.adapters.bottleneck.model",
    "ExportReport": "qpeft.adapters.folders.export",
    "Plan": "qpeft.planning",
    "QAAConfig": "qpeft.adapters.qaa.model",
    "QPAConfig": "qpeft.adapters.qpa",
    "QPAGeneratorConfig": "qpeft.generators.settings",
    "QuantumPeftConfig": "qpeft.adapters.quantum_peft",
    "SiteFeatures": "qpeft.adapters.qaa.report",
    "SoRACallback": "qpeft.adapters.sora.callback",
    "SoRAConfig": "qpeft.adapters.sora.model",
    "SoRAExportReport": "qpeft.adapters.sora.export",
    "attach": "qpeft.adapters.attached.attach",
    "export": "qpeft.adapters.folders.export",
    "feature_report": "qpeft.adapters.qaa.report",
    "fit_frames": "qpeft.adapters.fit_frames",
    "load": "qpeft.adapters.folders.checkpoint",
    "param_groups": "qpeft.adapters.optimizer",
    "plan": "qpeft.planning",
    "register_generator": "qpeft.generators.registry",
    "register_method": "qpeft.adapters.registry",
    "save": "qpeft.adapters.folders.checkpoint",
    "set_backend": "qpeft.adapters.backend",
    "untie_lm_head": "qpeft.adapters.tied",
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
    import_module("qpeft.adapters.registry").register()
