"""Generates the pages of docs/results except its index: one table per study over all setups, from their summaries.

    python benchmarks/results_pages.py          # docs/results/survey.md, controls.md, ...

Every value on these pages comes from a summary.csv or blocks.csv; a test generates the pages again and compares them.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from qpeft.files import write_text

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SETUPS = {
    "embedded": "embedded base, NumPy's docstrings",
    "grimm": "stories260K, Grimm's tales",
    "wikitext": "stories260K, WikiText-2",
}
STUDIES = ("survey", "controls", "feature-source", "rank-perplexity", "shots", "noise")
LINK = {"summary.md": "tables", "report.html": "report"}


def main() -> None:
    for study in STUDIES:
        write_text(RESULTS / f"{study}.md", page(study))


def page(study: str) -> str:
    """The page of a study: question, table of differences, equal-budget blocks, links."""
    found = {name: _read(RESULTS / name / study) for name in SETUPS if (RESULTS / name / study).is_dir()}
    described = next(iter(found.values()))[0]
    parts = [
        f"# {described['title']}",
        described["question"],
        _where(study, found),
        f"Test loss in nats per token, mean ± standard deviation over {len(described['seeds'])} seeds; below it the "
        f"difference from {_label(described, described['reference'])}, paired by seed, with its 95 % interval. "
        "In bold: better or worse, after Holm's correction.",
        _methods(found),
        *_controls(found),
        *_blocks(found),
        "## The commands",
        "\n".join(["```sh", *(study_json["command"] for study_json, _, _ in found.values()), "```"]),
        "\n".join(["```{toctree}", ":hidden:", "", *(f"{name}/{study}/summary" for name in found), "```"]),
    ]
    return "\n\n".join(parts) + "\n"


def _read(folder: Path) -> tuple[dict, dict[str, dict[str, str]], list[dict[str, str]]]:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        methods = {line["key"]: line for line in csv.DictReader(file)}
    with (folder / "blocks.csv").open(encoding="utf-8", newline="") as file:
        return study, methods, list(csv.DictReader(file))


def _where(study: str, found: dict) -> str:
    links = {name: ", ".join(f"[{word}]({name}/{study}/{file})" for file, word in LINK.items()) for name in found}
    return "\n".join(f"- {SETUPS[name]}: {links[name]}" for name in found)


def _methods(found: dict) -> str:
    keys = [m["key"] for m in next(iter(found.values()))[0]["methods"] if m["role"] == "main"]
    return _table(found, keys, "delta")


def _controls(found: dict) -> list[str]:
    controls = [m for m in next(iter(found.values()))[0]["methods"] if m["against"]]
    if not controls:
        return []
    about = "Each control with the method to which it belongs. Differences are control minus method."
    return ["## Controls", about, _table(found, [m["key"] for m in controls], "control")]


def _table(found: dict, keys: list[str], prefix: str) -> str:
    head = ["method", *(SETUPS[name] for name in found)]
    lines = [head, ["---"] * len(head)]
    for key in keys:
        rows = [methods[key] for _, methods, _ in found.values()]
        of = f" (of {_label(next(iter(found.values()))[0], rows[0]['control.to'])})" if prefix == "control" else ""
        lines.append([rows[0]["label"] + of, *(_cell(row, prefix) for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, str], prefix: str, metric: str = "metric") -> str:
    mean, sd = (float(row[f"{metric}.{name}"] or 0) for name in ("mean", "sd"))
    trained = f"{int(row['trainable']):,} trained" if int(row["trainable"]) else "nothing trained"
    return f"{mean:.3f} ± {sd:.3f}<br>{_difference(row, prefix)}{trained}"


def _difference(row: dict[str, str], prefix: str) -> str:
    if not row[f"{prefix}.mean"]:
        return ""
    mean, low, high = (float(row[f"{prefix}.{name}"]) for name in ("mean", "low", "high"))
    digits = 3 if max(abs(low), abs(high)) >= 0.01 else 5
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{text if row[f'{prefix}.verdict'] == 'no difference shown' else f'**{text}**'}<br>"


def _blocks(found: dict) -> list[str]:
    parts = []
    for of in dict.fromkeys(line["of"] for _, _, lines in found.values() for line in lines):
        label = _label(next(iter(found.values()))[0], of)
        parts += [
            f"## With as many trainable parameters as {label}",
            f"Differences are relative to {label}. A method with less than 80 % or more than 100 % of its trainable "
            "parameters is not ranked.",
            _block(found, of),
        ]
    return parts


def _block(found: dict, of: str) -> str:
    head = ["method", *(SETUPS[name] for name in found)]
    lines = [head, ["---"] * len(head)]
    keys = dict.fromkeys(line["key"] for _, _, rows in found.values() for line in rows if line["of"] == of)
    for key in keys:
        cells = []
        for _, _, rows in found.values():
            row = next(line for line in rows if (line["of"], line["key"]) == (of, key))
            place = f"rank {row['rank']}" if row["rank"] else f"not ranked ({100 * float(row['ratio']):.0f} %)"
            cells.append(f"{_cell(row, 'delta')}, {place}")
        label = _label(next(iter(found.values()))[0], key).partition(",")[0]  # sizes differ between setups
        lines.append([label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _label(study: dict, key: str) -> str:
    return next(method["label"] for method in study["methods"] if method["key"] == key)


if __name__ == "__main__":
    main()
