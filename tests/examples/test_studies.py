"""The study files of examples/: their fields are known, and their settings belong to their methods."""

from pathlib import Path

import pytest
from studies import count_methods

from qpeft.errors import ConfigError
from qpeft_lab.compare.study import load_study

FILES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_study_file_is_valid(path, tmp_path):
    study = load_study(str(path), {})
    assert study.reference in {method.key for method in study.methods}
    assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")
    assert count_methods(study, tmp_path).keys() == {method.key for method in study.methods}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shear": "type"}, "method circuit: unknown field of method quantum_peft: 'shear'; did you mean 'share'"),
        ({"frame": "gradiant"}, "method circuit: unknown frame 'gradiant'; did you mean 'gradient'"),
    ],
)
def test_broken_settings_are_found(change, message, tmp_path):
    broken = {"key": "circuit", "method": "quantum_peft", "settings": change}
    study = load_study(str(FILES[0]), {"methods": [broken], "reference": "circuit", "blocks": []})
    with pytest.raises(ConfigError, match=message):
        count_methods(study, tmp_path)
