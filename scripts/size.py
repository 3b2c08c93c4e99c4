"""Print the size of the tracked tree next to the limits of release 0.2; with --check, fail if a part is above."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUANTUM_ADAPTERS = [f"src/qpeft/methods/{name}" for name in ("cua", "quic", "quanta")]
CODE = {".py", ".pyi", ".j2", ".html", ".js", ".css"}


def tracked() -> list[Path]:
    """The files of the working tree that git tracks."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


def lines(files: list[Path], *folders: str) -> int:
    """Lines of code, docstrings and comments in these folders."""
    found = [f for f in files if f.suffix in CODE and any(f.is_relative_to(folder) for folder in folders)]
    return sum(len((ROOT / f).read_text(encoding="utf-8").splitlines()) for f in found)


def pages(files: list[Path]) -> list[Path]:
    """README and the pages of docs, without the list of pages for Sphinx."""
    written = [f for f in files if f.suffix == ".md" and f.parent == Path("docs") and f.name != "index.md"]
    return [f for f in files if f == Path("README.md")] + written


def measure() -> list[tuple[str, float, float]]:
    """Name, size and limit of each part."""
    files = tracked()
    bytes_in_all = sum((ROOT / f).stat().st_size for f in files if not (ROOT / f).is_symlink())
    of_adapters = lines(files, *QUANTUM_ADAPTERS)
    words = sum(len((ROOT / f).read_text(encoding="utf-8").split()) for f in pages(files))
    return [
        ("library, lines", lines(files, "src/qpeft") - of_adapters, 9_500),
        ("cua, quic, quanta, lines", of_adapters, 800),
        ("laboratory, lines", lines(files, "src/qpeft_lab"), 10_000),
        ("tests, lines", lines(files, "tests"), 16_500),
        ("benchmarks, lines", lines(files, "benchmarks"), 2_600),
        ("pages", len(pages(files)), 16),
        ("words of pages", words, 26_000),
        ("files", len(files), 450),
        ("megabytes", bytes_in_all / 1e6, 12),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a part is above its limit")
    check = parser.parse_args().check
    sizes = measure()
    for name, size, limit in sizes:
        print(f"{name:26} {size:>10,.0f}  limit {limit:>8,.0f}{'  above' if size > limit else ''}")
    return int(check and any(size > limit for _, size, limit in sizes))


if __name__ == "__main__":
    sys.exit(main())
