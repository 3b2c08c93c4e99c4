"""Angles that somebody gave for a circuit: checked once, as float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qpeft.errors import ConfigError

if TYPE_CHECKING:
    from qpeft.circuits.ansatz import Ansatz


def given_angles(ansatz: Ansatz, angles: Any) -> NDArray[np.float64]:
    """`angles` (a tensor, an array, nested lists) as float64 of shape `ansatz.angle_shape`, radians.

    Raises:
        ConfigError: another shape, or an angle that is not finite.
    """
    found = torch.as_tensor(angles, dtype=torch.float64).detach().cpu().numpy()
    if found.shape != ansatz.angle_shape:
        raise ConfigError(
            f"{ansatz.name} on {ansatz.n_qubits} qubits with {ansatz.n_layers} layers has angles of shape "
            f"{ansatz.angle_shape}, got {found.shape}"
        )
    if not np.isfinite(found).all():
        raise ConfigError("an angle is NaN or infinite; look for the step at which the training broke")
    return found
