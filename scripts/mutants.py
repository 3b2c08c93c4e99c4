"""Mutation sampling: change one place of the source at random, and see whether the tests notice.

    python scripts/mutants.py --n 150 --out mutants.jsonl
    python scripts/mutants.py --out mutants.jsonl --report

A mutant is killed if a test fails. It is tested by the files of tests/ that import its module, then
by those of its folder, then by the contracts, for at most SECONDS of CPU time. Each mutant runs in
a child of a process that has imported torch and peft; results are appended as they come, and a
second call continues.
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
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("circuits", "core", "methods")
CONTRACTS = ("methods/test_life.py", "methods/test_matrix.py", "testing/test_adapter_contract.py")
SECONDS = 90
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


def places(tree: ast.AST) -> list[ast.AST]:
    """The nodes that can be mutated; neither messages of errors nor annotations are."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.arguments)) or (
            isinstance(node, ast.Expr) and _is_text(node.value)
        ):
            return
        has_operator = isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS
        compares = isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS
        calls = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        decides = isinstance(node, ast.If | ast.IfExp | ast.While | ast.Return)
        if has_operator or compares or calls or decides or _is_number(node):
            found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "msg"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return found


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


def sample(n: int, seed: int) -> list[tuple[str, int]]:
    """Module and place of n mutants, drawn without replacement."""
    files = sorted(p for name in PACKAGES for p in (ROOT / "src" / "qpeft" / name).rglob("*.py"))
    every = [
        (str(p.relative_to(ROOT)), i)
        for p in files
        for i in range(len(places(ast.parse(p.read_text()))))
    ]
    return random.Random(seed).sample(every, min(n, len(every)))


def tests_for(module: str) -> list[str]:
    """The files of tests, the nearest first."""
    name = (
        module.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    )
    package, _, last = name.rpartition(".")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    texts = {p: p.read_text() for p in files}
    direct = [p for p in files if name in texts[p] or f"from {package} import {last}\n" in texts[p]]
    folder = ROOT / "tests" / "/".join(package.split(".")[1:])
    near = [p for p in files if folder in p.parents]
    chosen = [str(p.relative_to(ROOT)) for p in [*direct, *near]] + [
        f"tests/{name}" for name in CONTRACTS
    ]
    return [p for p in dict.fromkeys(chosen) if (ROOT / p).is_file()]


def run(module: str, place: int) -> dict[str, object]:
    """Test one mutant in a copy of the source."""
    tree = ast.parse((ROOT / module).read_text())
    node = places(tree)[place]
    line = getattr(node, "lineno", 0)
    before = ast.unparse(copy.deepcopy(node)).splitlines()[0][:100]
    change = mutate(node)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            ROOT / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__")
        )
        (Path(folder) / module).write_text(ast.unparse(ast.fix_missing_locations(tree)))
        child = os.fork()
        if not child:
            _test(Path(folder) / "src", tests_for(module))
        status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    outcome = "survived" if code == 0 else "undecided" if code == -24 else "killed"  # 24: SIGXCPU
    return {
        "module": module,
        "place": place,
        "line": line,
        "code": before,
        "change": change,
        "outcome": outcome,
    }


def _test(source: Path, files: list[str]) -> None:
    import pytest

    resource.setrlimit(
        resource.RLIMIT_CPU, (int(sum(os.times()[:2])) + SECONDS, resource.RLIM_INFINITY)
    )
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not long", "--rootdir", str(ROOT)]
    options += [
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]  # of what the parent has imported
    code = pytest.main([*options, *files])
    os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    done = (
        [json.loads(line) for line in asked.out.read_text().splitlines()]
        if asked.out.exists()
        else []
    )
    if not asked.report:
        os.chdir(ROOT)
        import peft  # noqa: F401  so that children need not
        import pytest  # noqa: F401
        import torch  # noqa: F401

        known = {(one["module"], one["place"]) for one in done}
        for module, place in sample(asked.n, asked.seed):
            if (module, place) not in known:
                done.append(run(module, place))
                with asked.out.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    killed = sum(one["outcome"] == "killed" for one in done)
    print(f"{killed} of {len(done)} mutants killed ({killed / max(1, len(done)):.0%})")
    for one in done:
        if one["outcome"] != "killed":
            print(
                f"{one['outcome']}: {one['module']}:{one['line']}: {one['code']}: {one['change']}"
            )


if __name__ == "__main__":
    main()
