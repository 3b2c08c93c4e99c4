"""The exceptions that qpeft raises.

Each message states what was found, what is allowed, and what to do. On the command line, an `InputError` is exit code
2 (nothing was done yet) and any other `QpeftError` exit code 1.
"""

import re
from collections.abc import Collection

_LONGEST = 2000
_MARKED = re.compile("\ufdd0(\\w+)\ufdd1")  # noncharacters of Unicode, which are reserved for use inside a program


def setting(name: str) -> str:
    """The field `name` in an exception's message: `seq_len` in Python, `--seq-len` from a command with this option."""
    return f"\ufdd0{name}\ufdd1"


RUN_AGAIN = "\ufdd2"  # in a message: what to do after the cause is removed


class _Message:
    def __str__(self) -> str:
        return self.message()

    def message(self, options: Collection[str] = (), again: str = "run the same command again") -> str:
        """The message, in which those of its settings that are `options` of a command are named as options.

        `again` is what to do after the cause is removed. The message is shortened and escaped: it may quote a file,
        which can be long or not valid text.
        """

        def shown(found: re.Match[str]) -> str:
            return f"--{found[1].replace('_', '-')}" if found[1] in options else found[1]

        text = _MARKED.sub(shown, super().__str__().replace(RUN_AGAIN, again))
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class QpeftError(_Message, Exception):
    """Base class of qpeft's exceptions."""


class QpeftWarning(_Message, UserWarning):
    """A warning whose message names settings."""


class DataWarning(QpeftWarning):
    """Rows of a data source are left out."""


class BaseModelWarning(QpeftWarning):
    """An adapter is loaded on another base model than the one that it was trained on."""


class InputError(QpeftError, ValueError):
    """An invalid argument or file; raised before any work is done."""


class ConfigError(InputError):
    """A field or option is unknown, out of range, or contradicts another."""


class DataError(InputError):
    """A data source is missing, empty, or lacks a required column."""


class CheckpointError(InputError):
    """A saved adapter or run is damaged, not qpeft's, written by a newer version, or made for another model."""


class NotMergeableError(ConfigError, NotImplementedError):
    """The adapter's update depends on the input, so it cannot be merged into a weight."""


class TiedWeightError(InputError):
    """A merge or export would also change another module, which shares the target's weight."""


class UnsupportedTypeError(InputError, TypeError):
    """A dtype or a type of module that a method does not support."""


class CircuitError(QpeftError, RuntimeError):
    """The current angles give no orthogonal matrix: it is nearly rank deficient, or a series diverges."""


class TrainingError(QpeftError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""


class BackendError(QpeftError, RuntimeError):
    """A device did not answer, or the shot budget is used up; completed steps are saved."""


class VerificationError(QpeftError, RuntimeError):
    """An exported adapter does not reproduce the logits of the trained model."""


_PACKAGES = {"PennyLane": "pennylane", "Qiskit": "qiskit qiskit-aer"}


def missing_extra(what: str, library: str) -> ConfigError:
    """The exception for `what`, which needs the optional `library`: "PennyLane" or "Qiskit"."""
    return ConfigError(f"{what} needs {library}: pip install {_PACKAGES[library]}")
