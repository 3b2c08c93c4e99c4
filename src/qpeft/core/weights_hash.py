"""PEFT configs that record what the adapter's weights and base are, refuse other weights, and write a model card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from qpeft.checks import option
from qpeft.core import model_card
from qpeft.errors import CheckpointError, ConfigError, QpeftError
from qpeft.files import file_hash


@contextmanager
def sets_in_order(*configs: PeftConfig) -> Iterator[None]:
    """Within: the sets of `configs` are sorted lists, so that every process saves them in the same order."""
    sets = [(vars(one), name, value) for one in configs for name, value in vars(one).items() if isinstance(value, set)]
    for fields, name, value in sets:
        fields[name] = sorted(value)
    try:
        yield
    finally:
        for fields, name, value in sets:
            fields[name] = value


@dataclass
class SealedConfig(PeftConfig):
    """Mixed in first. PEFT saves the weights before the config, and loads the config before the weights."""

    weights_sha256: str | None = option(
        None, "SHA-256 of adapter_model.safetensors; filled in when saved.", filled_in=True
    )
    base_digest: str | None = option(
        None, "Digest of the base model's adapted weights; filled in when bound.", filled_in=True
    )

    @property
    def depends_on_base(self) -> bool:
        """Whether the adapter's values have a meaning on its own base model only."""
        return False

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        if args:  # the first field of PEFT's configs is the task
            example = f"r={args[0]!r}" if hasattr(cls, "r") else 'target_modules="all-linear"'
            raise ConfigError(f"{cls.__name__} takes keyword arguments only; name the field, such as {example}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, tuple):
                setattr(self, name, list(value))  # as it is read back from JSON
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """The fields as in adapter_config.json, apart from sets."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in super().to_dict().items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        weights = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
        self.weights_sha256 = file_hash(weights) if weights.is_file() else None
        with sets_in_order(self):
            super().save_pretrained(save_directory, **kwargs)
        if card := self.card():
            model_card.write_card(Path(save_directory), card, self.registered())

    def card(self) -> model_card.Card | None:
        """The content of the model card; None for PEFT's own card."""
        return None

    def registered(self) -> type:
        """The class whose module must be imported before a folder of this config is loaded."""
        return type(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As PEFT's: a config of the folder's own class. The weights of a local folder of this package are checked.

        Raises:
            CheckpointError: the weights are not those that were saved with this config, or the config is damaged.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        weights = folder / SAFETENSORS_WEIGHTS_NAME
        if weights.exists() and not weights.is_file():  # reading a pipe would block
            raise CheckpointError(f"{weights} is not a file; restore it")
        try:
            config: Any = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        except ConfigError as error:
            raise CheckpointError(f"{folder / 'adapter_config.json'}: {error}") from error
        except (QpeftError, OSError):
            raise
        except Exception as error:  # a field of another type can fail anywhere in PEFT
            raise CheckpointError(
                f"{folder / 'adapter_config.json'} is damaged ({type(error).__name__}: {error}); restore it"
            ) from error
        if not isinstance(config, SealedConfig):  # PEFT returns the folder's own config, as every config class does
            return config
        _check_readable(folder, config)
        check_seal(folder, config.weights_sha256)
        return config


def _check_readable(folder: Path, config: Any) -> None:
    """Fields that PEFT does not check, with errors only when it builds the model or saves it again."""
    name = config.base_model_name_or_path
    try:
        _ = name is None or name.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} has base_model_name_or_path {name!r}, which is not a name; restore it"
        ) from error
    if getattr(config, "megatron_config", None):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} has a megatron_config, which no adapter of qpeft has; remove it"
        )


def check_seal(folder: Path, expected: str | None) -> None:
    """Raise CheckpointError if the folder's weights have another SHA-256 than the `expected` one, if there is one."""
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if expected is not None and weights.is_file() and file_hash(weights) != expected:
        raise CheckpointError(
            f"{weights} is not the file that was saved: its SHA-256 differs, so it is damaged or was replaced; copy "
            "the folder again (if the change is intended, set weights_sha256 to null in the JSON file that contains it)"
        )
