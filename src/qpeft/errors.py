"""The exceptions that qpeft raises.

Each message states what was found, what is allowed, and what to do. On the command line, an
`InputError` is exit code 2 (nothing was done yet) and any other `QpeftError` exit code 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class QpeftError(Exception):
    """Base class of qpeft's exceptions."""


class QpeftWarning(UserWarning):
    """Base class of qpeft's warnings."""


class DataWarning(QpeftWarning):
    """Rows of a data source are left out."""


class BaseModelWarning(QpeftWarning):
    """An adapter is loaded on another base model than the one that it was trained on."""


class InputError(QpeftError, ValueError):
    """An invalid argument or file; raised before any work is done."""


class ConfigError(InputError):
    """A field or option is unknown, out of range, or contradicts another, or the model does not
    support it.
    """


class DataError(InputError):
    """A data source is missing, empty, or lacks a required column."""


class CheckpointError(InputError):
    """A saved adapter or run is damaged, not qpeft's, written by a newer version, or made for
    another model.
    """


class TiedWeightError(InputError):
    """A merge or export would also change another module, which shares the target's weight."""


class CircuitError(QpeftError, RuntimeError):
    """The current angles give no orthogonal matrix: it is nearly rank deficient."""


class TrainingError(QpeftError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""


class BackendError(QpeftError, RuntimeError):
    """A device did not answer, or the shot budget is used up; completed steps are saved."""


class VerificationError(QpeftError, RuntimeError):
    """An exported adapter does not reproduce the logits of the trained model."""


_PACKAGES = {"PennyLane": "pennylane", "Qiskit": "qiskit qiskit-aer", "gguf": "gguf"}


@contextmanager
def needs(what: str, library: str) -> Iterator[None]:
    """For imports. Raises ConfigError where a module is missing, since `what` needs the `library`
    "PennyLane", "Qiskit" or "gguf".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} needs {library}: pip install {_PACKAGES[library]}") from error
