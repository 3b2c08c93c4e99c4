"""The errors that qpeft raises on purpose.

Each message says what was found, what is allowed, and what to do. The command line turns
`InputError` and its children into exit code 2 (nothing was done yet) and every other
`QpeftError` into exit code 1.
"""

_LONGEST = 2000


class QpeftError(Exception):
    """Base of every error that qpeft raises on purpose."""

    def __str__(self) -> str:
        """The message; what it quotes of a file may be of any length, and no text at all."""
        text = super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class InputError(QpeftError, ValueError):
    """Something the user gave is not usable; raised before any work is done."""


class ConfigError(InputError):
    """A method's setting is out of range, unknown, or contradicts another."""


class DataError(InputError):
    """A data source is missing, empty, or lacks a needed column."""


class CheckpointError(InputError):
    """A saved adapter or run is corrupt, foreign, newer, or made for another model."""


class NotMergeableError(ConfigError, NotImplementedError):
    """An update that depends on the input, and that no change of a weight equals."""


class TiedWeightError(InputError):
    """A merge or export would also change the weight that the target shares."""


class UnsupportedTypeError(InputError, TypeError):
    """A dtype or a kind of module that a method cannot work with."""


class CircuitError(QpeftError, RuntimeError):
    """The present angles give no usable orthogonal matrix: nearly rank deficient, or a series that diverges."""


class TrainingError(QpeftError, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


class BackendError(QpeftError, RuntimeError):
    """A device did not answer, or its shots are used up; steps that were done stay done."""


class VerificationError(QpeftError, RuntimeError):
    """An exported adapter does not reproduce the live model."""


_PACKAGES = {"PennyLane": "pennylane", "Qiskit": "qiskit qiskit-aer"}


def missing_extra(what: str, library: str) -> ConfigError:
    """The error for `what` where the optional `library`, "PennyLane" or "Qiskit", is not installed."""
    return ConfigError(f"{what} needs {library}: pip install {_PACKAGES[library]}")
