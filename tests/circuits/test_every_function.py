"""Every function of circuits: invalid input (class of error, value or name in its message), and
contexts of torch.
"""

from functools import partial

import pytest
import torch
from tables import forget_tables

from qpeft.backends import CircuitRun, ExactBackend, Jobs
from qpeft.circuits import (
    Ansatz,
    amplitude_expectations,
    count_orthogonal,
    exact_probabilities,
    lie_columns,
    orthogonal_columns,
    probabilities,
    to_openqasm,
)
from qpeft.circuits.lie import count_lie
from qpeft.circuits.orthogonal import basis_columns
from qpeft.circuits.simulate import circuit_states
from qpeft.errors import ConfigError, TrainingError

SQUARE = Ansatz("square", 3, 2)
LADDER = Ansatz("ry_ladder", 3, 2)
SEVEN = torch.zeros(7)  # two_design on 3 qubits, 1 layer
ELEVEN = torch.zeros(11)  # qsd of width 6, 1 layer
NAN = torch.nan
INF = torch.inf

REFUSED = [
    (Ansatz, ("mystery", 2, 2), ConfigError, "'mystery'.*ry_ladder, two_design"),
    (Ansatz, ("ry_ladder", 0, 2), ConfigError, "n_qubits.*0"),
    (Ansatz, ("ry_ladder", 2, 0), ConfigError, "n_layers.*0"),
    (exact_probabilities, (SQUARE, torch.zeros(2, 3)), ConfigError, r"2, 3, 3\), got \(2, 3\)"),
    (exact_probabilities, (SQUARE, torch.zeros(2, 3, 3).half()), ConfigError, "float16"),
    (exact_probabilities, (SQUARE, torch.full((2, 3, 3), NAN)), ConfigError, "square.*NaN"),
    (probabilities, (torch.zeros(3),), ConfigError, r"got \(3,\)"),
    (circuit_states, (LADDER, torch.zeros(2, 3)), ConfigError, r"got \(2, 3\)"),
    (orthogonal_columns, (SEVEN, 16, 1, [0]), ConfigError, r"\(10,\).*7"),
    (orthogonal_columns, (SEVEN[None, None], 8, 1, [0]), ConfigError, r"\(7,\).*1, 7\)"),
    (orthogonal_columns, (SEVEN, 8, 1, torch.tensor([-1])), ConfigError, r"0 to 7, got \[-1\]"),
    (orthogonal_columns, (SEVEN, 8, 1, []), ConfigError, r"got \[\]"),
    (
        orthogonal_columns,
        (ELEVEN, 6, 1, [0], "qft"),
        ConfigError,
        "'qft'; choose one of auto, qsd, pad",
    ),
    (orthogonal_columns, (ELEVEN, 0, 1, [0]), ConfigError, "width.*0"),
    (orthogonal_columns, (ELEVEN, 6, 0, [0]), ConfigError, "n_layers.*0"),
    (
        orthogonal_columns,
        (ELEVEN, 6, 1, range(5)),
        ConfigError,
        "r=5.*block 4 of width 6.*construction='pad'",
    ),
    (orthogonal_columns, (ELEVEN[:7], 6, 1, range(7), "pad"), ConfigError, "at most 6.*got 7"),
    (orthogonal_columns, (ELEVEN[:9], 6, 1, [0]), ConfigError, r"width 6.*\(11,\)"),
    (orthogonal_columns, (ELEVEN + NAN, 6, 1, [0]), ConfigError, "NaN or Inf"),
    (basis_columns, ("first", 2, 5), ConfigError, "1 to 4.*5"),
    (basis_columns, ("spread", 2, 0), ConfigError, "1 to 4.*0"),
    (lie_columns, (torch.zeros(16, 4), 2), ConfigError, "lie_rank=4 exceeds r=2"),
    (lie_columns, (torch.zeros(4, 4), 4), ConfigError, "lie_rank.*1 to 3 for width 4, got 4"),
    (lie_columns, (torch.zeros(4, 2), 5), ConfigError, "at most 4.*5"),
    (lie_columns, (torch.zeros(4), 1), ConfigError, r"got \(4,\)"),
    (
        lie_columns,
        (torch.zeros(4, 1), 1, "log"),
        ConfigError,
        "lie_map 'log'; choose one of exp, cayley",
    ),
    (lie_columns, (torch.zeros(4, 1).half(), 1), ConfigError, "float16"),
    *(
        (lie_columns, (torch.full((4, 1), NAN), 1, kind), ConfigError, "NaN")
        for kind in ("exp", "cayley")
    ),
    (count_lie, (1, 1), ConfigError, "lie_rank.*1"),
    (count_lie, (4, 0), ConfigError, "lie_rank.*0"),
    (to_openqasm, (LADDER, torch.zeros(3, 2)), ConfigError, r"\(2, 3\), got \(3, 2\)"),
    (to_openqasm, (LADDER, torch.full((2, 3), INF)), ConfigError, "NaN"),
]
FOUR = torch.ones(2, 4)
ONE_LAYER = torch.ones(1, 3, 2)
REFUSED += [
    (amplitude_expectations, *rest)
    for rest in (
        ((FOUR, ONE_LAYER, "ry_ladder"), ConfigError, "'ry_ladder'"),
        ((FOUR, torch.ones(0, 3, 2)), ConfigError, "n_layers.*0"),
        ((FOUR, ONE_LAYER, "qaa"), ConfigError, r"\(1, 1, 2\), got \(1, 3, 2\)"),
        ((torch.ones(1, 5), torch.ones(6)), ConfigError, r"width 5.*got \(6,\)"),
        ((FOUR[:, :2], torch.ones(1, 0, 2, 3), "mps"), ConfigError, "mps acts on pairs"),
        ((torch.ones(1, 0), ONE_LAYER), ConfigError, "wide.*0"),
        ((torch.ones(1, 65537), torch.ones(1, 3, 17)), ConfigError, "n = 17 .*limit is 16"),
        ((FOUR.double(), ONE_LAYER), ConfigError, "float64 on cpu and torch.float32"),
        ((FOUR, ONE_LAYER.to("meta")), ConfigError, "float32 on meta"),
        ((FOUR, ONE_LAYER * NAN), ConfigError, "NaN"),
    )
]


@pytest.mark.parametrize("function, arguments, error, message", REFUSED)
def test_invalid_input_is_refused(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


X = torch.linspace(-1, 2, 200).view(4, 50)
TURNS = torch.linspace(-1, 2, 18).view(1, 3, 6)
ONES = {6: torch.ones(4, 64)}
SIMULATORS = {
    "ladder": (probabilities, (3, 9)),
    "square": (partial(exact_probabilities, Ansatz("square", 6, 2)), (2, 3, 6)),
    "two_design, signs": (
        lambda at: orthogonal_columns(at, 64, 2, range(3), signs=ONES.__getitem__),
        (2, 26),
    ),
    "orthogonal, qsd": (
        lambda at: orthogonal_columns(at, 48, 2, [0, 3], "qsd"),
        (2, count_orthogonal(48, 2, "qsd")),
    ),
    "orthogonal, pad": (
        lambda at: orthogonal_columns(at, 45, 2, [0, 3], "pad"),
        (2, count_orthogonal(45, 2, "pad")),
    ),
    **{
        f"lie, {kind}": (partial(lie_columns, k=4, lie_map=kind), (30, 2))
        for kind in ("exp", "cayley")
    },
    **{
        f"{name}, angles": (partial(amplitude_expectations, X, ansatz=name), (1, 3, 6))
        for name in ("square", "rxyz")
    },
    **{
        f"{name}, x": (partial(amplitude_expectations, angles=TURNS, ansatz=name), (4, 50))
        for name in ("square", "rxyz")
    },
}


def trained(simulate, tensor):
    """Values and the gradient of their sum with weights."""
    found = simulate(tensor)
    weights = torch.linspace(-1, 2, found.numel()).view_as(found)
    return found.detach(), *torch.autograd.grad(found, tensor, weights)


@pytest.mark.parametrize("name", SIMULATORS)
def test_autocast_and_tables_first_built_in_another_context_change_nothing(name):
    simulate, shape = SIMULATORS[name]
    tensor = (0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    plain = trained(simulate, tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = simulate(tensor)

    assert torch.equal(cast, plain[0])

    contexts = [torch.inference_mode(), *([] if name.startswith("lie") else [torch.device("meta")])]
    for context in contexts:
        forget_tables()
        with context:
            simulate(tensor.detach())
        torch.testing.assert_close(
            trained(simulate, tensor),
            plain,
            rtol=1e-6,
            atol=1e-6,
        )


def test_second_derivative_is_refused():
    angles = torch.ones(3, 9, requires_grad=True)
    with pytest.raises(TrainingError, match="create_graph"):
        torch.autograd.grad(probabilities(angles).sum(), angles, create_graph=True)

    run = CircuitRun(LADDER, Jobs(ExactBackend(), None))
    angles = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(TrainingError, match="create_graph"):
        torch.autograd.grad(run(angles).sum(), angles, create_graph=True)


@pytest.mark.parametrize(
    "simulate",
    [
        partial(exact_probabilities, SQUARE),
        lambda angles: amplitude_expectations(torch.ones(8), angles),
        CircuitRun(SQUARE, Jobs(ExactBackend(), None)),
    ],
    ids=["probabilities", "amplitudes", "run"],
)
def test_transforms_of_torch_are_refused(simulate):
    with pytest.raises(TrainingError, match=r"torch\.func\.grad, vmap"):
        torch.func.grad(lambda angles: simulate(angles).sum())(torch.ones(2, 3, 3))
