"""Every generator passes `generator_contract`, and every planted mistake is detected."""

import math
import warnings

import numpy as np
import pytest
import torch

from qpeft.circuits import probabilities
from qpeft.core.generator import Generator, fingerprint
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.qpa.generator import QPAGeneratorConfig
from qpeft.methods.qpa.settings import FEATURE_SOURCES
from qpeft.methods.quantum_peft.generator import QuantumPeftGenerator
from qpeft.methods.quantum_peft.layout import Layout, Matrix
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig
from qpeft.testing import generator_contract

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
M = 60
INITIAL = torch.linspace(-1, 1, M)


def qpa(seed, initial=INITIAL, **settings):
    small = {"chunk_size": 8, "hidden": (5, 4), "n_layers": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not a compression
        return QPAGeneratorConfig(**{**small, **settings, "seed": seed}).make(initial, SeededInit(seed))


def qpa_in_numpy(generator):
    """w0 + G - G_ref, from the circuit's angles and the MLP's weights."""

    def output(initial):
        p = probabilities(generator.feature.angles(initial=initial).detach()).numpy()
        x = np.array([[int(bit) * 2 - 1 for bit in f"{c:03b}"] + [(8 * p[c] - 1) / math.sqrt(2)] for c in range(8)])
        for i, layer in enumerate(generator.mlp):
            weight, bias = (t(initial=initial).detach().numpy() for t in (layer.weight, layer.bias))
            x = x @ weight.T + bias
            x = x / (1 + np.exp(-x)) if i < len(generator.mlp) - 1 else x
        return x.ravel()[:M]

    return torch.from_numpy(INITIAL.double().numpy() + output(False) - output(True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", FEATURE_SOURCES)
def test_qpa_passes(source, device):
    counted = QPAGeneratorConfig(chunk_size=8, hidden=(5, 4), n_layers=3, feature_source=source).count(M).total
    reference = qpa_in_numpy if source in ("qnn", "qnn_frozen") else None
    generator_contract(
        lambda seed: qpa(seed, feature_source=source),
        initial=INITIAL,
        n_trained=counted,
        dense_reference=reference,
        device=device,
    )


@pytest.mark.parametrize(
    "settings",
    [{"init_mode": "raw", "output_scale": 0.5}, {"init_mode": "raw", "center_output": True}, {"feature_map": "squash"},
     {"activation": "identity"}],
)  # fmt: skip
def test_qpa_passes_with_other_settings(settings):
    generator_contract(lambda seed: qpa(seed, **settings))


MATRICES = [Matrix("one", 6, 4, 2, 16.0), Matrix("two", 4, 4, 3, 8.0)]


def quantum_peft(seed, gains=3, **settings):
    config = QuantumPeftGeneratorConfig(**settings, seed=seed)
    return QuantumPeftGenerator(config, Layout.of(config, MATRICES), SeededInit(seed), torch.ones(gains))


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


def test_initial_quantum_peft_update_is_zero():
    """lambda is 0, so lora_B is 0, and the gains have their initial values."""
    flat = quantum_peft(0)()
    assert flat.count_nonzero() == 2 * 4 + 3 * 4 + 3  # lora_A of both, and the gains


class Line(Generator):
    """w = w0 + R sin(tau): a correct generator, in which each class below plants one mistake."""

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


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sin(x)

    @staticmethod
    def backward(ctx, grad):
        return grad  # cos(x) is forgotten


class BadGradient(Line):
    def forward(self):
        return self.initial + self.mixing @ WrongGradient.apply(self.numbers())


class Noisy(Line):
    def forward(self):
        return super().forward() + 1e-3 * torch.randn(len(self.initial)) * self.numbers().abs().sum()


class TorchDrawn(Line):
    def drawn(self, start, shape):
        return torch.randn(shape)


class NotAtStart(Line):
    def forward(self):
        return super().forward() + 1e-3


class SeedNotIncluded(Line):
    def described(self, start):
        return "settings alone"


class Forgetful(Line):
    """Does not save its parameters."""

    def pack(self, state):
        return {name: tensor for name, tensor in state.items() if not name.startswith("numbers")}


class OtherThanSaved(Line):
    def pack(self, state):
        return {**state, "numbers.tau": state["numbers.tau"].half().float()}


class Double(Line):
    def forward(self):
        return super().forward().double()


class Square(Line):
    def forward(self):
        return super().forward().view(-1, 2)


class Idle(Line):
    def __init__(self, initial, seed):
        super().__init__(initial, seed)
        self.idle = Folded(torch.zeros(1), 1.0)


class PartlyIdle(Line):
    """Has one unused entry in a parameter."""

    def forward(self):
        return self.initial + self.mixing[:, 1:] @ torch.sin(self.numbers()[1:])


class Cached(Line):
    def forward(self):
        if not hasattr(self, "kept"):
            self.kept = super().forward()
        return self.kept


class InitialNotSaved(Line):
    def __init__(self, initial, seed):
        super().__init__(initial, seed)
        self.register_buffer("initial", initial, persistent=False)


class OneEntry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.tensor([1, 1, 1.001, 1])


class OneEntryOff(Line):
    def forward(self):
        return self.initial + self.mixing @ torch.sin(OneEntry.apply(self.numbers()))


class LoosePart(Line):
    """Has a tensor that is neither parameter nor buffer, so it is not moved."""

    def __init__(self, initial, seed):
        super().__init__(initial, seed)
        self.loose = torch.ones(len(initial), dtype=torch.float32)

    def forward(self):
        return super().forward() * self.loose.to(torch.float32)

    def _apply(self, fn, recurse=True):
        torch.nn.Module._apply(self, fn, recurse)
        return self


class UnderAutocast(Line):
    def __call__(self):
        return torch.nn.Module.__call__(self)


class NotANumber(Line):
    def forward(self):
        return super().forward() * math.nan


class Detached(Line):
    def forward(self):
        return super().forward().detach()


class InNumPy(Line):
    def forward(self):
        return super().forward().detach().numpy()


class DiffersInEval(Line):
    def forward(self):
        return super().forward() + (0 if self.training else 1e-3)


class Unmarked(Line):
    def __init__(self, initial, seed):
        super().__init__(initial, seed)
        del self.fingerprint


MISTAKES = {
    NotANumber: "contains NaN or Inf",
    Detached: "the output has no gradient",
    InNumPy: "must be a torch.Tensor, got <class 'numpy.ndarray'>",
    DiffersInEval: r"eval\(\) changes the output",
    Unmarked: "no fingerprint",
    BadGradient: "gradient of numbers.tau is off",
    Noisy: "two evaluations differ",
    TorchDrawn: "draw from `init`, not from torch",
    NotAtStart: "must equal `initial` exactly",
    SeedNotIncluded: "the state of another seed is accepted",
    Forgetful: "its own saved state is refused",
    OtherThanSaved: "a loaded generator has a different output",
    Double: "must be float32, got torch.float64",
    Square: r"must be flat \(P,\), got shape \(30, 2\)",
    Idle: "idle.tau has no gradient",
    PartlyIdle: "1 of 4 entries of numbers.tau have gradient 0",
    Cached: "must not cache between calls",
    InitialNotSaved: "save `initial`",
    OneEntryOff: "gradient of numbers.tau is off",
    LoosePart: r"\.to\(bfloat16\) left",
    UnderAutocast: "autocast changes the output",
}


def test_correct_generator_passes():
    generator_contract(lambda seed: Line(INITIAL, seed), initial=INITIAL, n_trained=4)


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_contract_detects_mistakes(kind):
    with pytest.raises(AssertionError, match=MISTAKES[kind]):
        generator_contract(lambda seed: kind(INITIAL, seed), initial=INITIAL)


def test_wrong_count_and_wrong_reference_are_detected():
    with pytest.raises(AssertionError, match="there are 4 trainable parameters, 5 were counted"):
        generator_contract(lambda seed: Line(INITIAL, seed), n_trained=5)
    with pytest.raises(AssertionError, match=r"off by .* from the dense reference"):
        generator_contract(lambda seed: Line(INITIAL, seed), dense_reference=lambda g: g().detach() + 1e-6)
    with pytest.raises(AssertionError, match=r"reference has shape \(59,\), the output \(60,\)"):
        generator_contract(lambda seed: Line(INITIAL, seed), dense_reference=lambda g: g().detach()[1:])
    generator_contract(lambda seed: Line(INITIAL, seed), dense_reference=lambda g: g().detach().numpy())


def test_fingerprint_without_settings_is_detected():
    def scaled(scale, *settings):
        line = Line(INITIAL, 0)
        line.mixing *= scale
        line.fingerprint.copy_(fingerprint(line.described(SeededInit(0)), *settings))
        return line

    with pytest.raises(AssertionError, match="the state of other settings is accepted"):
        generator_contract(lambda seed: Line(INITIAL, seed), make_other=lambda: Line(INITIAL * 2, 0))
    generator_contract(lambda seed: Line(INITIAL, seed), make_other=lambda: scaled(2.0, "scale", 2.0))


def test_initial_is_restored_and_must_be_the_same_object():
    initial = INITIAL.clone()
    generator_contract(lambda seed: Line(initial, seed), initial=initial)
    assert torch.equal(initial, INITIAL)
    with pytest.raises(AssertionError, match="must be the tensor object that make"):
        generator_contract(lambda seed: Line(INITIAL, seed), initial=initial)
    assert torch.equal(initial, INITIAL)
