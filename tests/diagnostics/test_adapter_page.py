"""The page of a diagnosis: complete, offline, narrow."""

import re
from urllib.parse import unquote

import pytest
import tiny_models
import torch
from pages import browser, needs_browser, showing  # noqa: F401
from peft import get_peft_model
from synthetic_study import summary_of, write_synthetic_study

import qpeft
from qpeft.diagnostics.diagnosis import diagnose
from qpeft.diagnostics.page import write_page
from qpeft.diagnostics.retraining import CircuitMatters
from qpeft.diagnostics.target import of_folder
from qpeft.errors import ConfigError


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory):
    """A trained adapter, with a synthetic study in place of its training runs."""
    folder = tmp_path_factory.mktemp("page")
    base = tiny_models.llama()
    settings = {"r": 4, "hidden": (6, 5), "chunk_size": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, qpeft.QPAConfig(**settings))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(str(folder / "adapter"))
    study = write_synthetic_study(folder / "study")
    trainings = CircuitMatters(study, summary_of(study))
    return diagnose(of_folder(folder / "adapter", name="<b>my</b> adapter"), samples=20, trainings=trainings)


@pytest.fixture(scope="module")
def page_file(diagnosis, tmp_path_factory):
    return write_page(diagnosis, tmp_path_factory.mktemp("html") / "deep" / "diagnose.html")


def test_page_contains_every_finding_and_chart(diagnosis, page_file):
    text = page_file.read_text()
    for finding in diagnosis.findings:
        assert f'<section id="{finding.key}">' in text
        assert finding.sentences
    assert text.count('<img class="chart"') == 3 + 2 + 1 + 1 + 3 + 1, (
        "laws, gradients, fidelities, movement, ranks, training runs"
    )
    charts = [unquote(data) for data in re.findall(r"svg.xml,([^\"]+)", text)]
    assert len(charts) == 11
    assert not any("$" in chart for chart in charts), "a formula that is not rendered"
    assert "<b>my</b>" not in text, "names are escaped"
    assert not re.search(r"(src|href)=\"(?!#|data:)", text), "nothing is loaded from elsewhere"
    (page_file.parent / "again.html").symlink_to("target.html")  # which is followed
    again = write_page(diagnosis, page_file.with_name("again.html"))
    assert again.is_symlink()
    assert again.read_bytes() == page_file.read_bytes()


def test_too_few_samples_and_other_targets_raise_config_error():
    with pytest.raises(ConfigError, match="at least 10"):
        diagnose(None, samples=9)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="diagnose takes a Target, got str"):
        diagnose("run")  # type: ignore[arg-type]


class TestInTheBrowser:
    pytestmark = needs_browser

    def test_narrow_screen_does_not_scroll_horizontally(self, browser, page_file):  # noqa: F811
        with showing(browser, page_file) as show:
            page = show(viewport={"width": 360, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator("img.chart").count() == 11
            widths = page.locator("img.chart").evaluate_all("(all) => all.map((chart) => chart.naturalWidth)")
            assert min(widths) > 100, "a chart is not shown"
