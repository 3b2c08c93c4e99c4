"""Every generator passes `generator_contract`, and every planted mistake is detected."""

import math
import warnings

import numpy as np
import pytest
import torch

from qpeft.circuits import probabilities
from qpeft.core.folded import Folded
from qpeft.core.generator import Generator, fingerprint
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot
from qpeft.methods.qpa.settings import QPAGeneratorConfig
from qpeft.methods.quantum_peft.config import QuantumPeftConfig
from qpeft.testing import generator_contract
from qpeft.testing.generator import _check_gradients

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
M = 60
INITIAL = torch.linspace(-1, 1, M)
SMALL = {"chunk_size": 8, "hidden": (5, 4), "n_layers": 3}


def qpa(seed, initial=INITIAL, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not a compression
        return QPAGeneratorConfig(**{**SMALL, **settings, "seed": seed}).make(
            [], initial, SeededInit(seed)
        )


def qpa_in_numpy(generator):
    """Generators of equal shares, with one feature for each of their chunks; w0 + G - G_ref unless
    raw.
    """
    config = generator.config
    share = math.ceil(M / generator.config.n_generators)
    n_chunks = math.ceil(share / config.chunk_size)
    n_qubits = math.ceil(math.log2(n_chunks))

    def outputs(initial):
        for g, angles in enumerate(generator.feature.angles(initial=initial).detach()):
            p = probabilities(angles).numpy()
            if config.feature_map == "squash":
                feature = (
                    0.6 * np.tanh(0.1 * 2 ** (n_qubits - 1) * np.maximum(p, 1e-6 / 2**n_qubits))
                ) ** 0.15
                feature -= feature.mean()  # over all basis states
            else:
                feature = (2**n_qubits * p - 1) / np.sqrt(2)
            bits = [
                [2 * int(bit) - 1 for bit in np.binary_repr(c, n_qubits)] for c in range(n_chunks)
            ]
            x = np.concatenate([np.array(bits), feature[:n_chunks, None]], axis=1)
            for i, layer in enumerate(generator.mlp):
                weight, bias = (
                    value(initial=initial)[g].detach().numpy()
                    for value in (layer.weight, layer.bias)
                )
                x = x @ weight.T + bias
                x = (
                    x / (1 + np.exp(-x))
                    if config.activation == "silu" and i < len(generator.mlp) - 1
                    else x
                )
            part = x.ravel()[:share]
            yield part - part.mean() if config.center_output else part

    found, start = (np.concatenate([*outputs(initial)])[:M] for initial in (False, True))
    return torch.from_numpy(
        found if config.init_mode == "raw" else INITIAL.double().numpy() + found - start
    )


OFFICIAL = {
    "init_mode": "raw",
    "center_output": True,
    "feature_map": "squash",
    "activation": "identity",
}
QPA = [
    *({"feature_source": source} for source in ("qnn", "qnn_frozen", "free", "random", "none")),
    {"init_mode": "raw", "center_output": True},
    {"feature_map": "squash"},
    {"activation": "identity"},
    {"hidden": None, "features": 1},
    {"n_generators": 3, **OFFICIAL},  # the published layout
    *(
        {"n_generators": 3, "features": 4, "hidden": (7,), "feature_source": source}
        for source in ("qnn", "free")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", QPA, ids=str)
def test_qpa_passes(settings, device):
    has_circuit = settings.get("feature_source", "qnn").startswith("qnn")
    generator_contract(
        lambda seed: qpa(seed, **settings),
        initial=None if "init_mode" in settings else INITIAL,
        n_trained=QPAGeneratorConfig(**{**SMALL, **settings}).count(M).total,
        dense_reference=qpa_in_numpy if has_circuit and "features" not in settings else None,
        device=device,
    )


SHAPES = {
    "one.lora_A.weight": (2, 4), "one.lora_B.weight": (6, 2), "two.lora_A.weight": (3, 4), "two.lora_B.weight": (4, 3)
}  # fmt: skip
# for which the Lie family has no parameters
ONE_WIDE = {
    "three.lora_A.weight": (1, 1),
    "three.lora_B.weight": (5, 1),
}


def quantum_peft(seed, **settings):
    config = QuantumPeftConfig(**settings, seed=seed, lora_alpha=16, alpha_pattern={"two": 8})
    shapes = SHAPES | ({} if config.family == "lie" else ONE_WIDE)
    slots = [
        Slot(None, "", label, torch.Size(shape), torch.float32) for label, shape in shapes.items()
    ]
    return config.make(config.order(slots), torch.empty(0), SeededInit(seed))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"columns": "first", "share": "type"},
        {"construction": "pad"},
        {"family": "lie"},
        {"family": "lie", "lie_map": "cayley"},
        {"entangler": "signs"},
        {"freeze_angles": True},
        {"frame": "random", "frame_rank": 4},
        {"frame": "random", "frame_rank": 4, "family": "core"},
    ],
    ids=str,
)
def test_quantum_peft_passes(settings):
    generator_contract(lambda seed: quantum_peft(seed, **settings))


class Line(Generator):
    """w = w0 + R sin(tau): a correct generator, in which each entry of MISTAKES plants one mistake."""

    def __init__(self, initial, seed):
        super().__init__()
        start = SeededInit(seed)
        self.numbers = Folded(torch.zeros(4), 1.0)
        self.register_buffer("mixing", self.drawn(start, (len(initial), 4)), persistent=False)
        self.register_buffer("initial", initial)
        self.register_buffer("fingerprint", fingerprint(self.described(start)))

    def drawn(self, start, shape):
        return start.normal("mixing", shape)

    def described(self, start):
        return start.hexdigest()

    def forward(self):
        return self.initial + self.mixing @ torch.sin(self.numbers())


def unmoved(self, fn, recurse=True):
    """A tensor that is neither parameter nor buffer is not moved, and neither are the others."""
    torch.nn.Module._apply(self, fn, recurse)
    return self


def cached(self):
    if not hasattr(self, "kept"):
        self.kept = Line.forward(self)
    return self.kept


def through(change):
    """A `forward` that changes the output of the correct one."""
    return {"forward": lambda self: change(self, Line.forward(self))}


def after(change):
    """An `__init__` that changes the generator."""

    def init(self, initial, seed):
        Line.__init__(self, initial, seed)
        change(self)

    return {"__init__": init}


def without_numbers(self, state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("numbers")}


MISTAKES = {  # what is defined otherwise, the message, and what the contract is given
    "not a number": (through(lambda self, flat: flat * math.nan), "contains NaN or Inf"),
    "detached": (through(lambda self, flat: flat.detach()), "the output has no gradient"),
    "differs in eval": (
        through(lambda self, flat: flat if self.training else flat + 1e-3),
        r"eval\(\) changes",
    ),
    "no fingerprint": (after(lambda self: delattr(self, "fingerprint")), "no fingerprint"),
    "wrong gradient": (
        through(lambda self, flat: flat + (flat - self.initial).detach()),
        "numbers.tau",
    ),
    "noisy": (
        through(lambda self, flat: flat + torch.randn(M) * self.numbers().abs().sum()),
        "two evaluations differ",
    ),
    "drawn by torch": (
        {"drawn": lambda self, start, shape: torch.randn(shape)},
        "draw from `init`, not from torch",
    ),
    "not at start": (through(lambda self, flat: flat + 1e-3), "must equal `initial` exactly"),
    "no seed": (
        {"described": lambda self, start: "settings alone"},
        "the state of another seed is not refused",
    ),
    "forgetful": ({"pack": without_numbers}, "its own saved state: CheckpointError"),
    "other than saved": (
        {"pack": lambda self, state: {**state, "numbers.tau": state["numbers.tau"].half().float()}},
        "its own saved state: the output differs",
    ),
    "square": (through(lambda self, flat: flat.view(-1, 2)), r"must be flat .*30, 2"),
    "idle": (
        after(lambda self: setattr(self, "idle", Folded(torch.zeros(1), 1.0))),
        "1 of 1 entries of idle.tau",
    ),
    "partly idle": (
        {"forward": lambda self: self.initial + self.mixing[:, 1:] @ torch.sin(self.numbers()[1:])},
        "1 of 4 entries of numbers.tau have gradient 0",
    ),
    "cached": ({"forward": cached}, "must not cache between calls"),
    "initial not saved": (
        after(lambda self: self.register_buffer("initial", self.initial, persistent=False)),
        "save `initial`",
    ),
    "not moved": ({"_apply": unmoved}, r"\.to\(bfloat16\)"),
    "under autocast": ({"__call__": torch.nn.Module.__call__}, "autocast changes the output"),
    "count": ({}, "there are 4 trainable parameters, 5 were counted", {"n_trained": 5}),
    "values": (
        {},
        "dense reference",
        {"dense_reference": lambda generator: generator().detach() + 1e-6},
    ),
    "shape": (
        {},
        "dense reference",
        {"dense_reference": lambda generator: generator().detach()[1:]},
    ),
    "settings": (
        {},
        "the state of other settings is not refused",
        {"make_other": lambda: Line(INITIAL * 2, 0)},
    ),
    "copied": ({}, "must be the tensor object that make", {"initial": INITIAL.clone()}),
}


def scaled():
    """With another setting, which its fingerprint includes."""
    line = Line(INITIAL, 0)
    line.mixing *= 2
    line.register_buffer("fingerprint", fingerprint(line.described(SeededInit(0)), "scale", 2.0))
    return line


def test_correct_generator_passes():
    initial = INITIAL.clone()
    generator_contract(
        lambda seed: Line(initial, seed),
        initial=initial,
        n_trained=4,
        dense_reference=lambda generator: generator().detach().numpy(),
        make_other=scaled,
    )
    assert torch.equal(initial, INITIAL)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_contract_detects_mistakes(mistake):
    changes, message, *options = MISTAKES[mistake]
    given = {"initial": INITIAL} | (options[0] if options else {})
    with pytest.raises(AssertionError, match=message):
        generator_contract(lambda seed: type("Mistaken", (Line,), changes)(INITIAL, seed), **given)


@pytest.mark.parametrize("error, is_detected", [(0.0, False), (0.002, True)])
def test_contract_detects_a_small_error_of_one_gradient_entry_in_thousands(error, is_detected):
    class Long(Line):
        """w = sin(tau), with another gradient in one entry of usual size."""

        def __init__(self):
            super().__init__(INITIAL, 0)
            self.numbers = Folded(torch.zeros(5_000), 1.0)

        def forward(self):
            tau = self.numbers()
            zeros = tau - tau.detach()
            usual = torch.arange(len(tau)) == 7
            return torch.sin(tau) + error * torch.where(usual, zeros, 0.0)

    generator = Long().double()
    if is_detected:
        with pytest.raises(AssertionError, match=r"the gradient of numbers.tau"):
            _check_gradients(generator)
    else:
        _check_gradients(generator)
