"""The operations of one pass of a generator and back, which a GPU starts one by one.

    python benchmarks/operations.py --methods qpa quantum_peft --geometry gpt2

Two counts of `out = generator(); out.backward(ones)` with an adapter on all linear maps, without
views:

- dispatched: what the PyTorch dispatcher is asked for. An operation such as `index_add` or the
  backward pass of a slice counts once.
- leaf: the innermost `aten::` operations of a profile. It also has what dispatched ones call below
  the dispatcher: memory (`empty`), zeros, copies, and the sums of gradients into `grad`.

On a GPU the kernels are fewer than the leaf operations, which allocate memory, too.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from training_step import GENERATED, GEOMETRIES, adapted


class Dispatched(TorchDispatchMode):
    """Counts the operations within this context, by name, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if not is_view(function.overloadpacket.__name__):
            self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@cache
def is_view(name: str) -> bool:
    """Whether an `aten` operation may return the memory of its input, by its schema."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name == "_unsafe_view":
        return packet is not None
    returned = [r for o in packet.overloads() for r in getattr(packet, o)._schema.returns]
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def leaf_operations(run: Callable[[], object]) -> Counter[str]:
    """The innermost `aten::` operations in a profile of `run()`, by name, without views."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()

    def counts(event: Any) -> bool:
        kind, _, name = event.name.partition("::")
        return kind == "aten" and not is_view(name)

    def contains(event: Any) -> bool:
        return any(counts(child) or contains(child) for child in event.cpu_children)

    leaves = (event for event in profiled.events() or () if counts(event) and not contains(event))
    return Counter(event.name.partition("::")[2] for event in leaves)


def dispatched_operations(run: Callable[[], object]) -> Counter[str]:
    with Dispatched() as mode:
        run()
    return mode.counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=GENERATED, default=GENERATED)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="gpt2")
    parser.add_argument("--r", type=int, default=4)
    parser.add_argument("--names", action="store_true", help="also the most frequent operations")
    options = parser.parse_args()
    shared = {"device": "cpu", "dtype": "float32", "layers": None}
    warnings.filterwarnings("ignore")
    print("| method | dispatched | leaf | of these forward | and of the leaf |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for method in options.methods:
        model = adapted(method, argparse.Namespace(**{**vars(options), **shared}))
        generator = model.base_model.generators["default"]

        def both(generator: Any = generator) -> None:
            out = generator()
            out.backward(torch.ones_like(out))

        both()  # makes tables, and `grad` of each parameter
        dispatched = dispatched_operations(both)
        leaf = leaf_operations(both)
        forward = dispatched_operations(generator).total(), leaf_operations(generator).total()
        print(f"| {method} | {dispatched.total()} | {leaf.total()} | {forward[0]} | {forward[1]} |")
        if options.names:
            print(dispatched.most_common(20), leaf.most_common(20), sep="\n")


if __name__ == "__main__":
    main()
