"""Importing qpeft is light, and registers with PEFT in either order of import; the wheel has every
file.
"""

import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import qpeft

ROOT = Path(__file__).parents[1]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_loads_no_module_outside_the_standard_library():
    own = "{'__main__', '_distutils_hack', *sys.stdlib_module_names}"
    out = run(
        "import sys, qpeft; dir(qpeft); print({name.partition('.')[0] for name in sys.modules} -"
        f" {own})"
    )
    assert out.strip() == "{'qpeft'}"


def test_taken_name_and_foreign_peft_are_refused(monkeypatch):
    from peft import mapping

    from qpeft.errors import ConfigError
    from qpeft.methods import registry

    registry.register_all()  # again: harmless
    with monkeypatch.context() as patch:
        patch.setitem(mapping.PEFT_TYPE_TO_TUNER_MAPPING, "QPEFT_QPA", object)
        with pytest.raises(ConfigError, match="already the PEFT type"):
            registry.register_with_peft(registry.get("qpa"))
    for other in ("0.9.0", "0.21.1", "0.22.0.dev0"):
        monkeypatch.setattr("peft.__version__", other)
        with pytest.raises(ConfigError, match=rf"works with peft >=0\.21\.2,<0\.22, found {other}"):
            registry.register_all()
    monkeypatch.setattr("peft.__version__", "0.21.3.dev0")
    registry.register_all()


def test_registration_adds_to_peft_and_changes_nothing_else():
    """In a process where PEFT came first: all its entries are as they were, and ours are none of
    its types.
    """
    out = run("""
import peft
from peft import mapping
tables = [getattr(mapping, f"PEFT_TYPE_TO_{kind}_MAPPING") for kind in ("CONFIG", "TUNER")]
before = [dict(table) for table in tables]
import qpeft
for table, stock in zip(tables, before):
    assert {key: table[key] for key in stock} == stock
    added = set(table) - set(stock)
    assert added and not added & {str(kind.value) for kind in peft.PeftType}, added
    assert all(str.__str__(name).startswith("QPEFT_") for name in added), added
print(len(added))
""")
    assert int(out) >= 6


@pytest.mark.long
@pytest.mark.parametrize(
    "order",
    [("qpeft", "peft"), ("peft", "qpeft"), ("qpeft.methods.sora.model", "peft")],
    ids="-".join,
)
def test_peft_finds_a_compact_adapter_of_equal_values_after_every_order_of_imports(order, tmp_path):
    base = (
        "transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2,"
        " vocab_size=50))"
    )
    made = "qpeft.QPAConfig(r=8, target_modules=['c_attn'], task_type='CAUSAL_LM')"
    folder = repr(str(tmp_path / "adapter"))
    values = "[v.double().sum().item() for v in tuner.generators.bindings['default'].values()]"
    saved = run(
        f"import qpeft, peft, transformers; model = peft.get_peft_model({base}, {made}); tuner ="
        f" model.base_model;qpeft.save(model, {folder}); print({values})"
    )
    imports = "; ".join(f"import {name}" for name in (*order, "torch", "transformers"))
    loaded = run(
        f"{imports}; torch.set_num_threads(2); tuner = peft.PeftModel.from_pretrained({base},"
        f" {folder}).base_model;assert type(tuner).__name__ == 'QPAModel'; print({values})"
    )

    assert loaded == saved


def test_the_library_imports_the_folder_of_a_method_only_in_itself():
    grimp = pytest.importorskip("grimp")  # of import-linter
    graph = grimp.build_graph("qpeft", cache_dir=None)  # also the imports inside functions
    folders = [
        path.parent.name for path in (ROOT / "src" / "qpeft" / "methods").glob("*/__init__.py")
    ]

    assert len(folders) > 7

    for name in (f"qpeft.methods.{folder}" for folder in folders):
        own = {name, *graph.find_descendants(name)}
        assert set().union(*map(graph.find_modules_that_directly_import, own)) <= own, name
        record = import_module(name).METHOD
        assert qpeft.methods.get(record.key) is record, (
            f"another folder has the key {record.key}, too"
        )


def test_changelog_has_this_version():
    headings = re.findall(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert qpeft.__version__ in headings


@pytest.mark.long
def test_wheel_has_every_file_of_the_package(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"qpeft-{qpeft.__version__}-*.whl")
    source = ROOT / "src"
    ours = {
        f.relative_to(source).as_posix()
        for f in source.rglob("*")
        if f.is_file() and f.suffix != ".pyc"
    }
    packed = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if name.startswith(("qpeft/", "qpeft_lab/"))
    }

    assert packed == ours
    assert {"qpeft/py.typed", "qpeft_lab/demo/base/model.safetensors"} <= packed
