"""The page of a diagnosis: complete, offline, narrow, light and dark, printed."""

import re
from urllib.parse import unquote

import pytest
import torch
from pages import CONTRAST, browser, needs_browser, showing  # noqa: F401
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
    """A trained adapter, with trainings that a synthetic study stands for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("page")
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
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
    again = write_page(diagnosis, page_file.with_name("again.html"))
    assert again.read_bytes() == page_file.read_bytes()


def test_histogram_and_law_are_densities(diagnosis):
    """Bins times width sum to the share of the law below the last edge, the same for the histogram."""
    from scipy.stats import beta

    law = diagnosis["random"].figures["random angles"]
    bins, width = law.histogram, law.histogram.edges[1]
    d = law.n_outcomes
    assert sum(bins.expected_density) * width == pytest.approx(beta(0.5, (d - 1) / 2).cdf(bins.edges[-1] / d))
    assert sum(bins.density) * width + bins.beyond == pytest.approx(1)


def test_too_few_samples_raise_config_error(diagnosis):
    with pytest.raises(ConfigError, match="at least 10"):
        diagnose(None, samples=9)  # type: ignore[arg-type]  refused before the target is looked at


class TestInTheBrowser:
    pytestmark = needs_browser

    @pytest.fixture
    def show(self, browser, page_file):  # noqa: F811
        with showing(browser, page_file) as opened:
            yield opened

    def test_narrow_screen_does_not_scroll_horizontally(self, show):
        page = show(viewport={"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for chart in page.locator("img.chart").all():
            box = chart.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(self, show, scheme):
        page = show(color_scheme=scheme)
        for selector in ("h1", ".facts dt", "nav a", "h2", "main p", "tbody td", "figcaption"):
            found = page.locator(selector)
            assert found.count() > 0, selector
            worst = min(found.evaluate_all(f"(all) => all.map({CONTRAST})"))
            assert worst >= 4.5, (selector, worst)

    def test_print_shows_every_question(self, show):
        page = show()
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("nav").is_visible()
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 29, 32)"
        heights = page.locator("main section").evaluate_all("(all) => all.map((section) => section.offsetHeight)")
        assert len(heights) == 7
        assert min(heights) > 40
