"""Print the size of the tracked tree next to its limits; with --check, fail if a part is above.

Mass is counted in tokens of Python. Docstrings, comments, line breaks and indentation cost nothing: a
sentence more is free.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = {
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class Part(NamedTuple):
    """A part of the tree; `planned` is the limit of the design, which features have exceeded."""

    name: str
    size: float
    limit: float
    planned: float


class Code(NamedTuple):
    """Tokens of the code, and all lines of the files: docstrings, comments and blank lines too."""

    tokens: int
    lines: int


def tracked() -> list[Path]:
    """The files of the working tree that git tracks, relative to its root."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of all strings that stand alone as a statement: docstrings of any object."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def count(path: Path) -> Code:
    """The tokens of one Python file without docstrings, comments, line breaks and indentation."""
    skipped = docstring_lines(ast.parse(path.read_text(encoding="utf-8")))
    with path.open("rb") as file:
        tokens = sum(
            token.type not in LAYOUT
            and not (token.type == tokenize.STRING and token.start[0] in skipped)
            for token in tokenize.tokenize(file.readline)
        )
    return Code(tokens, len(path.read_text(encoding="utf-8").splitlines()))


def code_of(files: list[Path], *folders: str) -> Code:
    """The sum over all Python files below these folders."""
    inside = [
        file
        for file in files
        if file.suffix in {".py", ".pyi"} and any(file.is_relative_to(folder) for folder in folders)
    ]
    counts = [count(ROOT / file) for file in inside]
    return Code(sum(c.tokens for c in counts), sum(c.lines for c in counts))


def pages(files: list[Path]) -> list[Path]:
    """README and the pages of docs, without the list of pages for Sphinx."""
    documents = [
        file
        for file in files
        if file.suffix == ".md" and file.parent == Path("docs") and file.name != "index.md"
    ]
    return [file for file in files if file == Path("README.md")] + documents


def measure() -> tuple[list[Part], dict[str, Code]]:
    """All parts; and the code of those that are counted in tokens, by name."""
    files = tracked()
    size_in_bytes = sum((ROOT / f).stat().st_size for f in files if not (ROOT / f).is_symlink())
    readme_lines = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    codes = {
        "library": code_of(files, "src/qpeft"),
        "laboratory": code_of(files, "src/qpeft_lab"),
        "tests": code_of(files, "tests"),
        "benchmarks, evidence, scripts": code_of(files, "benchmarks", "evidence", "scripts"),
    }
    tokens = {name: code.tokens for name, code in codes.items()}
    parts = [
        Part("library, tokens", tokens["library"], 97_000, 78_000),
        Part("laboratory, tokens", tokens["laboratory"], 110_000, 82_000),
        Part("tests, tokens", tokens["tests"], 256_000, 168_000),
        Part(
            "benchmarks, evidence, scripts, tokens",
            tokens["benchmarks, evidence, scripts"],
            59_800,
            34_000,
        ),
        Part("README, lines", readme_lines, 130, 130),
        Part("pages", len(pages(files)), 20, 20),
        Part("tracked tree, megabytes", size_in_bytes / 1e6, 15.2, 14),
    ]
    return parts, codes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a part is above its limit")
    check = parser.parse_args().check
    parts, codes = measure()
    for part in parts:
        note = "  above" if part.size > part.limit else ""
        limits = f"limit {part.limit:>8,.0f}  planned {part.planned:>8,.0f}"
        print(f"{part.name:38} {part.size:>10,.0f}  {limits}{note}")
    for name, code in codes.items():
        tokens_per_line = code.tokens / max(code.lines, 1)
        print(f"{name + ', tokens per line':52} {tokens_per_line:>6.2f}  below 6 is wanted")
    return int(check and any(part.size > part.limit for part in parts))


if __name__ == "__main__":
    sys.exit(main())
