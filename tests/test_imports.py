"""Importing qpeft is light, and the methods register with PEFT in either order of import."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "pennylane", "matplotlib")


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_light():
    out = run(f"import sys, qpeft; dir(qpeft); print([m for m in {HEAVY} if m in sys.modules])")
    assert out.strip() == "[]"


def test_import_loads_no_other_module():
    """The command handles Ctrl-C only after it."""
    out = run("import sys; before = {*sys.modules}; import qpeft; print({*sys.modules} - before)")
    assert out.strip() == "{'qpeft'}"


@pytest.mark.parametrize(
    "imports",
    [
        "import qpeft, peft",
        "import peft, qpeft",
        "import qpeft.methods.qpa.model; import peft",
    ],
)
def test_both_orders_register(imports):
    out = run(f"{imports}; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as t; print(t['QPEFT_QPA'].__name__)")
    assert out.strip() == "QPAModel"


def test_public_names_exist():
    import qpeft

    for name in qpeft.__all__:
        assert getattr(qpeft, name) is not None
    assert not hasattr(qpeft, "quantum_supremacy")


def test_taken_name_and_foreign_peft_are_refused(monkeypatch):
    from peft import mapping

    from qpeft.errors import ConfigError
    from qpeft.methods import peft_types

    peft_types.register_all()  # again: harmless
    with monkeypatch.context() as patch:
        patch.setitem(mapping.PEFT_TYPE_TO_TUNER_MAPPING, "QPEFT_QPA", object)
        with pytest.raises(ConfigError, match="already taken"):
            peft_types.register_all()
    monkeypatch.setattr("peft.__version__", "0.9.0")
    with pytest.raises(ConfigError, match=r"works with peft from 0\.21 and below 0\.22, found 0\.9\.0"):
        peft_types.register_all()


def test_registration_adds_to_peft_and_changes_nothing_else():
    """In a process where PEFT came first: all its entries are as they were, and ours are none of its types."""
    out = run(
        """
import peft
from peft import mapping
tables = [getattr(mapping, f"PEFT_TYPE_TO_{kind}_MAPPING") for kind in ("CONFIG", "TUNER", "PREFIX")]
before = [dict(table) for table in tables]
import qpeft
for table, stock in zip(tables, before):
    assert {key: table[key] for key in stock} == stock
    added = set(table) - set(stock)
    assert added and not added & {str(kind.value) for kind in peft.PeftType}, added
    assert all(str.__str__(name).startswith("QPEFT_") for name in added), added
print(len(added))
"""
    )
    assert int(out) >= 6


@pytest.mark.parametrize(
    "first",
    ["import qpeft; qpeft.QPAConfig", "import qpeft.methods.sora.config", "from qpeft import attach", "import peft"],
)
def test_config_classes_exist_once(first):
    """Whatever is imported first in a process, PEFT knows the classes that users create."""
    check = """
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known
import qpeft
for name in ("QPAConfig", "QuantumPeftConfig", "QAAConfig", "SoRAConfig", "BottleneckConfig"):
    config = getattr(qpeft, name)
    assert known[config().peft_type] is config, name
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"{first}\n{check}"], check=True)
