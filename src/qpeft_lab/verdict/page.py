"""verdict.html, which opens offline, and verdict.md, for a paper's appendix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qpeft.files import write_json, write_text
from qpeft_lab.compare import charts
from qpeft_lab.compare.charts import AN_ARROW, CONTROL, INK, Chart, as_svg, draw_interval, drawing
from qpeft_lab.compare.paired import EQUIVALENT, UNDECIDED
from qpeft_lab.compare.report import rendered, without_folders
from qpeft_lab.compare.stats import WORSE
from qpeft_lab.verdict.decision import VERDICT, Comparison, Verdict

_BAND = "#e9e7df"


def write(verdict: Verdict, folder: Path) -> None:
    """Write verdict.json, verdict.html and verdict.md to the study's folder."""
    write_json(folder / VERDICT, asdict(verdict))
    write_text(folder / "verdict.html", html(verdict))
    write_text(folder / "verdict.md", markdown(verdict))


def html(verdict: Verdict) -> str:
    """One page that loads nothing else."""
    context = {
        "verdict": verdict,
        "protocol": verdict.protocol,
        "header": HEADER,
        "lines": lines(verdict),
        "chart": picture(verdict),
        "facts": facts(verdict),
        "limits": list(limits(verdict)),
        "unit": UNIT_TEXT,
        "command": without_folders(verdict.command),
    }
    return rendered("verdict.html.j2", context)


def markdown(verdict: Verdict) -> str:
    """The same without the picture."""

    def row(texts: Any) -> str:
        return f"| {' | '.join(texts)} |"

    table = [row(HEADER), row("---" for _ in HEADER), *map(row, lines(verdict))]
    parts = [
        f"# Is it the circuit? {verdict.protocol.circuit}",
        f"**{verdict.sentence}**",
        "\n".join(table),
        UNIT_TEXT,
        "\n".join(f"- {name}: {value}" for name, value in facts(verdict).items()),
        "\n".join(f"- {text}" for text in limits(verdict)),
        f"```sh\n{without_folders(verdict.command)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


HEADER = [
    "other adapter",
    "decision",
    "difference [95 % interval]",
    "detectable",
    "trained",
    "learning rate",
]
UNIT_TEXT = (
    "A difference is the test loss with the trained circuit minus that with the other adapter, in"
    " per cent of what LoRA r=8 gains over the base without an adapter; below 0 the circuit is"
    " better. Decisions are corrected for the number of comparisons, intervals are not, so an"
    " interval may exclude 0 while the decision is undecided. Detectable is the smallest difference"
    " that this study finds with a probability of 80 %; trained is the number of trained parameters."
    " The learning rate of each adapter was searched separately, so a difference may also come from"
    " the learning rates."
)


def lines(verdict: Verdict) -> list[list[str]]:
    """The rows of the table, twins first."""
    return [
        [
            each.label,
            each.decision,
            f"{each.effect:+.1f} [{each.low:+.1f}, {each.high:+.1f}]",
            f"{each.detectable:.1f}",
            f"{verdict.adapters[each.against].trained:,}",
            f"{verdict.adapters[each.against].lr or 0:g}",
        ]
        for each in verdict.comparisons
    ]


def facts(verdict: Verdict) -> dict[str, str]:
    """What ran, for readers who want to repeat or to judge it."""
    protocol = verdict.protocol
    circuit = verdict.adapters["circuit"]
    some = verdict.comparisons[0]
    named = {
        "Base": f"{verdict.base}, {verdict.base_sha256[:19]}",
        "Data": f"{without_folders(verdict.data)}, {verdict.data_sha256[:12]}",
        "Adapter": (
            f"{protocol.method}, {circuit.trained:,} trained parameters,"
            f" {circuit.deployed:,} deployed, learning rate {circuit.lr or 0:g}"
        ),
        "Runs": f"{protocol.steps:,} steps, {some.n_seeds} seeds, {some.n_blocks} test blocks",
        "Margin": f"{protocol.margin:g} % of LoRA's gain, which is {verdict.gain:.3f} nats per token",
    }
    if verdict.angles_moved is not None and verdict.angles_moved_most is not None:
        named["Angles"] = (
            f"moved by {verdict.angles_moved:.2g} radians on average; the one that moved most"
            f" by {verdict.angles_moved_most:.2g}, averaged over the seeds"
        )
    named["Versions"] = ", ".join(f"{name} {value}" for name, value in verdict.versions.items())
    return named


def limits(verdict: Verdict) -> Iterator[str]:
    """What the study does not show."""
    moved = verdict.angles_moved
    if moved is not None and moved < 0.1:
        yield (
            "The angles hardly moved, so this study is about the circuit near its initial angles. To"
            " test it further away, start another study with --angle-scale 10 or higher, and its own"
            " --out. It multiplies the learning rate of the angles."
        )
    yield (
        "One base, one text, one number of steps. Circuits are simulated exactly, so nothing here"
        " is about the speed of a quantum computer."
    )
    yield (
        "LoRA, LoRA-SB and Uni-LoRA have at most the circuit's number of trained parameters. They"
        " show which adapter to use, and the twins what the circuit does."
    )


def picture(verdict: Verdict) -> Chart:
    """Every difference with its interval, and the margin as a band."""
    margin = verdict.protocol.margin
    # at least twice the margin is shown; an interval that ends outside gets an arrow
    reach = 1.15 * max(2 * margin, *(abs(each.effect) for each in verdict.comparisons))
    with drawing(70 + 34 * len(verdict.comparisons)) as (figure, axes):
        axes.axvspan(-margin, margin, color=_BAND, zorder=0)
        axes.axvline(0, color=INK, lw=1, zorder=0.5)
        style = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 9}
        axes.set_xlim(-reach, reach)
        for line, each in enumerate(verdict.comparisons):
            axes.text(0, line, f"minus {each.label}: {each.decision}", **style)
            _draw(axes, line + 0.42, each)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(verdict.comparisons), -0.5)
        axes.set_xlabel("← the circuit is better | per cent of LoRA's gain | worse →")
        caption = (
            "Differences with their 95 % intervals; the band is the margin. Filled: shown to be"
            f" better, worse or equivalent; hollow: undecided. {AN_ARROW}"
        )
        return Chart("Differences from the trained circuit", as_svg(figure), caption)


def _draw(axes: Any, height: float, each: Comparison) -> None:
    color = {WORSE: CONTROL.color, EQUIVALENT: INK}.get(each.decision, charts.QUANTUM.color)
    draw_interval(axes, height, each.low, each.high, color)
    face = "white" if each.decision == UNDECIDED else color
    axes.plot(each.effect, height, marker="o", mfc=face, color=color)
