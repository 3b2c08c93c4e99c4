"""Mutation sampling: change one place of the source at random, and see whether the tests notice.

    python scripts/mutants.py --map build/tests.json tests/circuits tests/core tests/methods
    python scripts/mutants.py --map build/tests.json --n 150 --out mutants.jsonl
    python scripts/mutants.py --out mutants.jsonl --report

The first command runs the tests once, and stores which of them run each line of the source, and how
long they take. The second tests each mutant by those that run the changed line, the fastest first.
A mutant is killed if a test fails, or needs much longer than before. It is undecided if the tests
need more than SECONDS of processor time. Each mutant runs in a child of a process that has imported
what the tests import; results are appended as they come, and a second call continues. The map must be
of the same tree: make it again after a change. A program that calls `main` needs the usual guard,
`if __name__ == "__main__"`, because tests start processes that import it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGES = ("src/qpeft/circuits", "src/qpeft/core", "src/qpeft/methods")
SECONDS = 150
FIRST = 12  # tests that run before the others are imported
OPTIONS = ["-q", "-p", "no:cacheprovider", "-m", "not long and not real", "--rootdir", str(ROOT)]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what the parent has imported
SWAPS = {
    **{
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Add,
        ast.Div: ast.Mult,
        ast.FloorDiv: ast.Mult,
    },
    **{
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    },
    **{
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
        ast.And: ast.Or,
        ast.Or: ast.And,
    },
}


class Map(NamedTuple):
    """What each test runs."""

    ids: list[str]  # of the tests
    seconds: list[float]  # of processor time of each
    lines: dict[str, dict[str, list[int]]]  # by module and line: positions in `ids`
    imported: list[str]  # modules that the tests import, without qpeft

    def tests_of(self, module: str, statement: range) -> list[int]:
        """The tests that run these lines of the module, the fastest first.

        If they run only when the module is imported: those that run any line of it; and if the
        module has no other lines, those that run any line of its folder.
        """
        folder = module.rpartition("/")[0] + "/"
        by_line = self.lines.get(module, {})
        tests = {test for line in statement for test in by_line.get(str(line), ())}
        tests = tests or {test for some in by_line.values() for test in some}
        if not tests:
            around = (some for name, some in self.lines.items() if name.startswith(folder))
            tests = {test for by_line in around for some in by_line.values() for test in some}
        return sorted(tests, key=lambda test: self.seconds[test])


class Recorder:
    """A plugin of pytest that records the processor time of each test, and the lines it runs."""

    def __init__(self) -> None:
        import coverage

        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, source=[str(SOURCE)], messages=False
        )
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.stop()
        self.coverage.start()  # again, because a test may have set another trace function
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.coverage.switch_context("")
        self.seconds[nodeid] = time.process_time() - self.seconds[nodeid]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)

    def map(self) -> Map:
        """Without tests that failed or were skipped."""
        self.coverage.stop()
        ids = sorted(self.seconds.keys() - self.failed)
        position = {test: index for index, test in enumerate(ids)}
        data = self.coverage.get_data()
        lines = {}
        for path in data.measured_files():
            by_line = data.contexts_by_lineno(path)
            lines[str(Path(path).relative_to(ROOT))] = {
                str(line): [position[test] for test in tests if test in position]
                for line, tests in by_line.items()
            }
        return Map(ids, [self.seconds[test] for test in ids], lines, list(_imported()))


def _imported() -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] not in ("qpeft", "qpeft_lab", "__main__") and not file.startswith(
            (f"{ROOT}/tests", f"{ROOT}/evidence", f"{ROOT}/benchmarks")
        ):
            yield name


def places(tree: ast.AST) -> list[ast.AST]:
    """The nodes that can be mutated; neither messages of errors nor annotations are."""
    nodes: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.arguments)) or (
            isinstance(node, ast.Expr) and _is_text(node.value)
        ):
            return
        has_operator = isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS
        compares = isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS
        calls = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        decides = isinstance(node, ast.If | ast.IfExp | ast.While) or (
            isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None")
        )
        if has_operator or compares or calls or decides or _is_number(node):
            nodes.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "msg"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return nodes


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float | bool)


def mutate(node: ast.AST) -> str:
    """Change the node in place; returns what was changed."""
    if isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()
        return f"operator became {type(node.op).__name__}"
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
        return f"comparison became {type(node.ops[0]).__name__}"
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition negated"
    if isinstance(node, ast.Return):
        node.value = ast.Constant(None)
        return "returns None"
    if isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        return f"constant became {node.value}"
    assert isinstance(node, ast.Expr)
    node.value = ast.Constant(None)
    return "call removed"


def sample(packages: Sequence[str], n: int, seed: int) -> list[tuple[str, int]]:
    """Module and place of n mutants of these folders, drawn without replacement."""
    files = sorted(path for name in packages for path in (ROOT / name).rglob("*.py"))
    every = [
        (str(path.relative_to(ROOT)), place)
        for path in files
        for place in range(len(places(ast.parse(path.read_text()))))
    ]
    return random.Random(seed).sample(every, min(n, len(every)))


def _statement(tree: ast.AST, node: ast.AST) -> range:
    """The lines of the smallest statement with this node, without those of its body."""
    around = [
        statement
        for statement in ast.walk(tree)
        if isinstance(statement, ast.stmt) and node in ast.walk(statement)
    ]
    last: Any = around[-1]  # `walk` goes from the outside in
    body = getattr(last, "body", None)
    end = body[0].lineno if body else last.end_lineno + 1
    return range(last.lineno, max(end, last.lineno + 1))


def run(module: str, place: int, covered: Map) -> dict[str, object]:
    """Test one mutant in a copy of the source."""
    tree = ast.parse((ROOT / module).read_text())
    node = places(tree)[place]
    line = getattr(node, "lineno", 0)
    tests = covered.tests_of(module, _statement(tree, node))
    before = ast.unparse(copy.deepcopy(node)).splitlines()[0][:100]
    change = mutate(node)
    outcome = "survived" if tests else "not run by any test"
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)  # with compiled files, which remain valid
        (Path(folder) / module).write_text(ast.unparse(ast.fix_missing_locations(tree)))
        for group in filter(None, (tests[:FIRST], tests[FIRST:])):
            child = os.fork()
            if not child:
                _test(source, group, covered, SECONDS - int(seconds))
            _, status, usage = os.wait4(child, 0)
            seconds += usage.ru_utime + usage.ru_stime
            code = os.waitstatus_to_exitcode(status)
            if code:
                # 1: a test failed; 2, 4: an import failed; SIGPROF: one took too long
                kills = code in (1, 2, 4, -signal.SIGPROF)
                outcome = "killed" if kills else f"undecided, exit code {code}"
                break
    return {
        "module": module,
        "place": place,
        "line": line,
        "code": before,
        "change": change,
        "outcome": outcome,
        "tests": len(tests),
        "seconds": round(seconds, 1),
    }


class Timer:
    """A plugin of pytest that ends the process if a test needs much longer than before."""

    def __init__(self, covered: Map) -> None:
        self.usual = dict(zip(covered.ids, covered.seconds, strict=True))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_PROF, 20 + 10 * self.usual.get(nodeid, 0.0))  # SIGPROF


def _test(source: Path, tests: Sequence[int], covered: Map, seconds: int) -> None:
    import pytest

    limit = int(sum(os.times()[:2])) + max(seconds, 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    ids = [covered.ids[test] for test in tests]
    os._exit(int(pytest.main(["-x", *OPTIONS, *ids], plugins=[Timer(covered)])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="folders to change")
    parser.add_argument("--map", type=Path, help="which tests run which line")
    parser.add_argument("--out", type=Path, help="the results")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("tests", nargs="*", help="make the map from these")
    asked = parser.parse_args()
    os.chdir(ROOT)
    if asked.tests:
        write_map(asked.map, asked.tests)
        return
    exists = asked.out.exists()
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if exists else []
    if not asked.report:
        covered = Map(*json.loads(asked.map.read_text()))
        for name in covered.imported:
            with suppress(Exception):  # parts of libraries that cannot be imported alone
                import_module(name)
        known = {(row["module"], row["place"]) for row in done}
        for module, place in sample(asked.packages, asked.n, asked.seed):
            if (module, place) not in known:
                done.append(run(module, place, covered))
                with asked.out.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    killed = sum(row["outcome"] == "killed" for row in done)
    print(f"{killed} of {len(done)} mutants killed ({killed / max(1, len(done)):.0%})")
    for row in done:
        if row["outcome"] != "killed":
            print("{outcome}: {module}:{line}: {code}: {change}".format_map(row))


def write_map(path: Path, tests: Sequence[str]) -> None:
    """Run the tests, and store what they run."""
    import pytest

    recorder = Recorder()
    pytest.main([*OPTIONS, *tests], plugins=[recorder])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recorder.map()))


if __name__ == "__main__":
    main()
