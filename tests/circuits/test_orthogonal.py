"""Constructions of columns: counts, orthonormality, acting angles, refused input."""

import math
import re

import numpy as np
import pytest
import torch

from qpeft.circuits.columns import basis_columns
from qpeft.circuits.counting import column_qubits, count_acting, count_orthogonal, resolve_construction
from qpeft.circuits.orthogonal import orthogonal_columns
from qpeft.errors import CircuitError, ConfigError, UnsupportedTypeError

COUNTS = {  # L = 1, 2, 3, 4
    768: {"qsd": [81, 127, 173, 219], "qsd_full": [103, 163, 223, 283], "pad": [28, 46, 64, 82]},
    896: {"qsd": [150, 234, 318, 402], "qsd_full": [240, 376, 512, 648], "pad": [28, 46, 64, 82]},
    1536: {"qsd": [91, 143, 195, 247], "qsd_full": [116, 184, 252, 320], "pad": [31, 51, 71, 91]},
    2304: {"qsd": [93, 147, 201, 255], "qsd_full": [115, 183, 251, 319], "pad": [34, 56, 78, 100]},
    3072: {"qsd": [101, 159, 217, 275], "qsd_full": [129, 205, 281, 357], "pad": [34, 56, 78, 100]},
    4864: {"qsd": [182, 286, 390, 494], "qsd_full": [285, 449, 613, 777], "pad": [37, 61, 85, 109]},
    11008: {"qsd": [366, 574, 782, 990], "qsd_full": [645, 1013, 1381, 1749], "pad": [40, 66, 92, 118]},
    14336: {"qsd": [230, 362, 494, 626], "qsd_full": [372, 588, 804, 1020], "pad": [40, 66, 92, 118]},
    50257: {"qsd": [642, 998, 1354, 1710], "qsd_full": [1182, 1838, 2494, 3150], "pad": [46, 76, 106, 136]},
}
CIRCUITS = {128: [19, 31, 43, 55], 256: [22, 36, 50, 64], 512: [25, 41, 57, 73], 1024: [28, 46, 64, 82]}
CIRCUITS |= {2048: [31, 51, 71, 91], 4096: [34, 56, 78, 100], 1: [0, 0, 0, 0], 2: [1, 1, 1, 1]}
SMALL = {1: (0, 0), 2: (1, 1), 3: (3, 3), 5: (9, 9), 6: (11, 12), 7: (14, 17), 1023: (None, 5302), 32000: (None, 2931)}


@pytest.mark.parametrize("width", COUNTS)
def test_counts_of_the_constructions(width):
    for name, counts in COUNTS[width].items():
        assert [count_orthogonal(width, n_layers, name) for n_layers in (1, 2, 3, 4)] == counts


def test_counts_of_circuits_and_of_small_widths():
    for width, counts in CIRCUITS.items():
        for name in ("auto", "qsd", "qsd_full", "pad"):
            assert [count_orthogonal(width, n_layers, name) for n_layers in (1, 2, 3, 4)] == counts
    for width, (qsd, full) in SMALL.items():
        assert qsd is None or count_orthogonal(width, 1, "qsd") == qsd
        assert count_orthogonal(width, 1, "qsd_full") == full


def test_construction_selected_by_auto():
    names = {1: "circuit", 64: "circuit", 768: "qsd", 896: "qsd", 14336: "qsd", 11008: "pad", 50257: "pad"}
    assert {width: resolve_construction(width, "auto") for width in names} == names
    assert {width: column_qubits(width) for width in names} == dict(zip(names, (0, 6, 9, 9, 13, 14, 16), strict=True))
    assert column_qubits(768, "pad") == 10


@pytest.mark.parametrize("construction", ["qsd", "qsd_full", "pad"])
@pytest.mark.parametrize("width", [768, 1536, 2304, 3072, 50257])
@pytest.mark.parametrize("kind", ["first", "spread"])
def test_float32_columns_are_orthonormal(width, construction, kind):
    rng = np.random.default_rng(width)
    angles = torch.tensor(rng.uniform(-np.pi, np.pi, count_orthogonal(width, 2, construction)), dtype=torch.float32)
    columns = basis_columns(kind, column_qubits(width, construction), 16)
    u = orthogonal_columns(angles, width, 2, columns, construction)
    assert u.dtype == torch.float32
    assert u.shape == (width, 16)
    assert (u.double().T @ u.double() - torch.eye(16)).abs().max() <= 1e-5


def jacobian_rank(width, n_layers, construction, kind, k):
    n_angles = count_orthogonal(width, n_layers, construction)
    if n_angles == 0:
        return 0
    angles = torch.tensor(np.random.default_rng(0).uniform(-np.pi, np.pi, n_angles))
    columns = basis_columns(kind, column_qubits(width, construction), k)
    copies = angles.repeat(width * k, 1).requires_grad_()  # one for each output
    u = orthogonal_columns(copies, width, n_layers, columns, construction)
    values = torch.linalg.svdvals(torch.autograd.grad(u.flatten(1).diagonal().sum(), copies)[0])
    return int((values > 1e-9 * values[0]).sum())


@pytest.mark.parametrize(
    ("width", "n_layers", "k", "kind", "rank"),
    [
        (64, 1, 4, "first", 14),
        (64, 1, 4, "spread", 16),
        (256, 2, 4, "first", 33),
        (256, 2, 4, "spread", 36),
        (32, 3, 2, "first", 27),
        (32, 3, 2, "spread", 29),
        (48, 1, 4, "first", 40),
        (48, 1, 4, "spread", 41),
    ],
)
def test_recorded_ranks(width, n_layers, k, kind, rank):
    assert jacobian_rank(width, n_layers, "auto", kind, k) == count_acting(width, n_layers, "auto", kind, k) == rank


def test_recorded_counts_of_acting_angles():
    for construction, kind, acting in (("qsd", "spread", 81), ("qsd", "first", 78), ("qsd_full", "first", 78)):
        assert count_acting(768, 1, construction, kind, 4) == acting
    assert count_acting(768, 1, "qsd_full", "spread", 4) == 81  # 22 of its 103 are idle


@pytest.mark.parametrize("construction", ["qsd", "qsd_full", "pad"])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 14, 15, 20, 21, 24, 27, 40])
def test_acting_angles_are_the_rank_of_the_jacobian(width, construction):
    found, expected = {}, {}
    for n_layers in (1, 2, 3):
        for k in (1, 2, 3, 5, 8):
            room = min(width, 2 ** column_qubits(width, construction))
            corner = construction == "pad" and k == 1 and width < 30  # nearly as many angles as a sphere has dimensions
            for kind in ("first", "spread") if k <= room and not corner else ():
                case = (n_layers, kind, k)
                found[case] = jacobian_rank(width, n_layers, construction, kind, k)
                expected[case] = count_acting(width, n_layers, construction, kind, k)
    assert found == expected


def test_pad_refuses_columns_in_the_dropped_rows():
    angles = torch.zeros(count_orthogonal(5, 1, "pad"), dtype=torch.float64)
    angles[0] = math.pi - 1e-4  # wire 0 to 1: almost everything is below the fifth row
    message = r"pad construction for width 5 is nearly rank deficient \(condition \d\.\de\+\d+\); redraw the angles"
    with pytest.raises(CircuitError, match=message + r" or use construction='qsd'$"):
        orthogonal_columns(angles, 5, 1, [0, 1], "pad")
    for columns in ([0, 6], [6]):  # without rotations a column stays where it is: nothing is left of the sixth
        with pytest.raises(CircuitError, match=r"condition inf"):
            orthogonal_columns(0 * angles, 5, 1, columns, "pad")


ANGLES = torch.zeros(11)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ANGLES, 6, 1, [0], "qft"), ConfigError, "unknown construction 'qft'; choose one of auto, qsd, qsd_full, pad"),
        ((ANGLES, 0, 1, [0]), ConfigError, "width must be at least 1, got 0"),
        ((ANGLES, 6, 0, [0]), ConfigError, "n_layers must be at least 1, got 0"),
        (
            (ANGLES, 6, 1, range(5)),
            ConfigError,
            "r=5 exceeds the leading block 4 of width 6; use construction='pad'",
        ),
        ((ANGLES[:7], 6, 1, range(7), "pad"), ConfigError, "6 rows hold at most 6 orthonormal columns, got 7"),
        (
            (ANGLES[:9], 6, 1, [0]),
            ConfigError,
            "width 6 and 1 layers need angles of shape (11,) or (M, 11), got (9,)",
        ),
        (
            (torch.zeros(count_orthogonal(2**33 + 1, 1)), 2**33 + 1, 1, [0]),
            ConfigError,
            "1 columns of 8589934593 rows need a tensor of about 2^34 elements, more than the simulator's limit of "
            "2^32; use fewer rows or columns",
        ),
        ((ANGLES.half(), 6, 1, [0]), UnsupportedTypeError, "angles must be float32 or float64, got torch.float16"),
        ((ANGLES + math.nan, 6, 1, [0]), ConfigError, "circuit angles contain NaN or Inf"),
    ],
)
def test_invalid_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=re.escape(message) + "$"):
        orthogonal_columns(*arguments)


def test_width_one_is_the_matrix_one():
    assert orthogonal_columns(torch.zeros(3, 0), 1, 2, [0]).tolist() == [[[1.0]]] * 3
