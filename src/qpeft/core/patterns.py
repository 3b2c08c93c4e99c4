"""Regular expressions in an adapter's config, which may be a stranger's: matching them must end.

Python's `re` tries every way to split a text between nested or repeated quantifiers, and every
choice of repeated groups of alternatives; nothing can interrupt it. So a pattern with several of
either is matched once in a process of its own, whose processor time the system limits, before PEFT
matches it in this process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from qpeft.errors import ConfigError

SECONDS = 2  # of processor time for all patterns and names; usual ones need milliseconds
_PATIENCE = 60  # seconds for the process, where the system does not limit its processor time
# as PEFT matches the fields: those with one pattern, lists of patterns, and keys that are patterns
_FIELDS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
_QUANTIFIER = re.compile(r"(?<!\()[*+?{]")  # not that of (?: and (?!
_SAFE = 2  # quantifiers without a quantified group: the time grows with the cube of the length
_MATCH = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))
except ImportError:
    pass
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.match(rf"(?:.*\\.)?(?:{pattern})(?:$|\\..*)", name)
        re.fullmatch(pattern, name)
"""


def check_patterns(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a pattern of an adapter's config that takes too long to match, or none
    at all.
    """
    for field in _FIELDS:
        value = settings.get(field)
        patterns = [value] if isinstance(value, str) else value or ()
        if not isinstance(patterns, Iterable):
            continue
        risky = [pattern for pattern in patterns if _is_risky(pattern)]
        if risky:
            modules = dict(model.named_modules(remove_duplicate=False))
            parameters = dict(model.named_parameters(remove_duplicate=False))
            _match(field, tuple(risky), tuple(sorted({*modules, *parameters})))


def _is_risky(pattern: Any) -> bool:
    if not isinstance(pattern, str):
        return False
    has_many_quantifiers = len(_QUANTIFIER.findall(pattern)) > _SAFE
    has_quantified_group = re.search(r"\)[*+?{]", pattern) is not None
    has_many_choices = "|" in pattern and pattern.count("(") > _SAFE
    return has_many_quantifiers or has_quantified_group or has_many_choices


@lru_cache(maxsize=8)  # a load asks twice; what raises is not kept
def _match(field: str, patterns: tuple[str, ...], names: tuple[str, ...]) -> None:
    command = [sys.executable, "-I", "-c", _MATCH, str(SECONDS)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([patterns, names]),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
        reason = (done.stderr.strip().splitlines() or ["it takes too long"])[-1]
        fails = done.returncode != 0
    except subprocess.TimeoutExpired:
        reason = "it takes too long"
        fails = True
    if fails:
        shown = patterns[0] if len(patterns[0]) < 80 else f"{patterns[0][:80]}..."
        raise ConfigError(
            f"{field} has the pattern {shown!r}, which cannot be matched with the names of this"
            f" model ({reason}); give the names of modules instead"
        )
