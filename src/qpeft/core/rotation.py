"""Block-diagonal rotations in front of or behind linear maps, and their tuner, which exports the equal
OFT.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from math import comb
from typing import Any

import torch
from peft import OFTConfig, get_peft_model_state_dict
from torch import Tensor

from qpeft.circuits.cayley import block_change
from qpeft.core.config import OwnTunerConfig
from qpeft.core.equal_oft import equal_oft, oft_problem
from qpeft.core.folded import Folded
from qpeft.core.linear_tuner import LinearAdapter, LinearTuner
from qpeft.core.stock_adapter import StockAdapter
from qpeft.errors import ConfigError

_MOST_CONDITION = 1e4  # of I + Q, before its inverse loses too many digits of float32


class Rotation(LinearAdapter):
    """A block-diagonal rotation Q = I + D of the input or of the output; on the input it is equal
    to PEFT's OFT.

    A subclass sets `size`, the width of a block, and `angles` of its N blocks, and defines `parts`.
    """

    size: int
    angles: Folded  # (N, ..)

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        """D as the parts (N, m, m) of `block_change`."""
        raise NotImplementedError

    def change(self, x: Tensor) -> Tensor:
        return block_change(x, self.parts(x.dtype), self.size)

    def merge_into(self, weight: Tensor) -> Tensor:
        if self.side == "output":
            return super().merge_into(weight)
        # W Q: the rows of W are rotated by the transpose
        transposed = [part.mT for part in self.parts(weight.dtype)]
        return weight + block_change(weight, transposed, self.size)

    @torch.no_grad()
    def oft_weight(self) -> Tensor:
        """The weight (N, size (size - 1) / 2) of the OFT with the same N blocks, in the dtype of the
        angles.

        OFT multiplies rows x^T by cay(S), S = skew(weight), so Q = cay(-S), and

            S = (Q + I)^-1 (Q - I)

        Raises ConfigError for a rotation by about 180 degrees, where Q + I has no inverse, and for
        angles that are not finite.
        """
        size = self.size
        parts = copy.deepcopy(self).cpu().parts(torch.float64)  # accelerators may have no float64
        n_blocks = len(parts[0])
        eye = torch.eye(size, dtype=torch.float64)
        # D of every block acts on the same rows of the identity
        columns = block_change(eye.repeat(1, n_blocks), parts, size)  # (size, N size)
        change = columns.unflatten(-1, (-1, size)).permute(1, 2, 0)  # (N, size, size)
        q = eye + change
        _check_invertible(q + eye)
        cayley = torch.linalg.solve(q + eye, q - eye)  # (N, size, size), skew-symmetric
        row, column = torch.triu_indices(size, size, 1)
        return cayley[:, row, column].to(self.angles.start)


def _check_invertible(sums: Tensor) -> None:
    """Raise ConfigError if a matrix Q + I is not finite, or too close to a singular one."""
    if not sums.isfinite().all():
        raise ConfigError(
            "a rotation has angles that are not finite; train again, or load a checkpoint"
        )
    if not (torch.linalg.cond(sums) < _MOST_CONDITION).all():
        raise ConfigError(
            "a rotation by about 180 degrees has no parameters of OFT; merge the adapter instead"
        )


def rotated_width(settings: Any, field: str, name: str, shape: tuple[int, int]) -> int:
    """The width of the rotated side of the map `name`; ConfigError if `field` exceeds it."""
    inputs, outputs = shape
    width = outputs if settings.side == "output" else inputs
    number = getattr(settings, field)
    if number > width:
        raise ConfigError(
            f"{field}={number} is more than {width}, the {settings.side} width of {name}; choose"
            " less"
        )
    return width


class RotationTuner(LinearTuner):
    """A tuner whose `adapter_class` is a `Rotation`; it is exported as OFT."""

    def stock_problem(self) -> str:
        problems = (oft_problem(self.model, adapted) for adapted in self.adapted_maps())
        return next(filter(None, problems), "")

    def count_more(self) -> int:
        """The parameters that the equal OFTs have in addition; only without a `stock_problem`."""
        more = 0
        for adapted in self.adapted_maps():
            rotation = adapted.adapter
            n_blocks = len(equal_oft(self.model, adapted).blocks)
            more += n_blocks * comb(rotation.size, 2) - rotation.angles.start.numel()
        return more

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        """The equal OFT, with the exact Cayley transform.

        Only without a `stock_problem`. Raises ConfigError for a rotation by about 180 degrees, or
        angles that are not finite.
        """
        tensors: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}  # of the blocks, by the name of the rotated map
        n_trained = 0
        n_blocks = 0
        for adapted in self.adapted_maps(adapter_name):
            rotation = adapted.adapter
            equal = equal_oft(self.model, adapted)
            weight = rotation.oft_weight()[equal.blocks]  # (blocks, size (size - 1) / 2)
            tensors[f"base_model.model.{equal.name}.oft_R.weight"] = weight
            sizes[equal.name] = rotation.size
            n_trained += sum(p.numel() for p in rotation.parameters())
            n_blocks = n_blocks or len(equal.blocks)

        config: Any = self.peft_config[adapter_name]
        settings = _shared_settings(config)
        if config.side == "output":  # other maps are rotated than those that it targets
            settings |= {
                "target_modules": list(sizes),
                "exclude_modules": None,
                "layers_to_transform": None,
                "layers_pattern": None,
            }
        # OFT has blocks of one size, or one number of blocks
        distinct = set(sizes.values())
        r, block_size = (0, distinct.pop()) if len(distinct) == 1 else (n_blocks, 0)
        stock = OFTConfig(**settings, r=r, oft_block_size=block_size, use_cayley_neumann=False)

        state = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        trained_copies = {key: t for key, t in state.items() if f".{self.prefix}" not in key}
        n_trained += sum(t.numel() for t in trained_copies.values())
        tensors |= trained_copies
        n_deployed = sum(t.numel() for t in tensors.values())
        return StockAdapter(stock, tensors, n_trained, n_deployed)


def _shared_settings(config: Any) -> dict[str, Any]:
    """The fields of OFT's config that qpeft's tuners have as well, such as `target_modules`."""
    of_oft = {field.name for field in fields(OFTConfig) if field.init}
    of_ours = {field.name for field in fields(OwnTunerConfig)}
    names = of_oft & of_ours - {"peft_type"}
    return {name: getattr(config, name) for name in names}
