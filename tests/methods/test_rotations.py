"""CUA, QuIC and QuanTA: published check values, their twins in PEFT, their circuits, and refusals."""

import copy
from functools import partial
from itertools import combinations

import numpy as np
import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D
from variants import move

import qpeft
from qpeft.circuits.cayley import cayley_change, skew
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.cua import CUASettings
from qpeft.methods.cua.model import CUARotation
from qpeft.methods.quanta.model import apply_gate, apply_mpo, default_axes, pairs
from qpeft.methods.quic import QuICSettings
from qpeft.methods.quic.compound import compounds, pyramid, rotations
from qpeft.methods.quic.model import QuICRotation

K = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
ONE_TO_FOUR = torch.arange(1.0, 5, dtype=torch.float64)


def wavy(*shape):
    """sin(1), sin(4), sin(9), ..., row by row."""
    return torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).square().sin().view(shape)


def close(found, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found).detach().double(), expected, atol=atol, rtol=0)


def cua(k, width, **settings):
    """The rotation with these parameters (blocks, n), in float64."""
    rotation = CUARotation(CUASettings(**settings), width).double()
    rotation.angles.tau.data = k
    return rotation


def on_linear(config, d=8, o=6, kind=nn.Linear, move_by=0.3):
    """A model with one linear map `f`, adapted, with changed parameters, and an input; all in float64."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"f": nn.Linear(d, o) if kind is nn.Linear else Conv1D(o, d)}).double()
    return move(get_peft_model(base, config), spread=move_by), torch.randn(5, d, dtype=torch.float64)


def test_check_values_of_cua():
    close(cua(torch.ones(1, 1), 2, block_size=2)(torch.eye(2)).mT + torch.eye(2), [[0.6, -0.8], [0.8, 0.6]])  # C1
    q = cayley_change(skew(K / 2)) + torch.eye(4)
    close(q[0], [0.942341, -0.184868, -0.211744, -0.181611])  # C2
    close(q @ ONE_TO_FOUR, [-0.789071, -1.002362, 0.427804, 5.309390])
    k = torch.tensor([[*K[:5], 6.0]], dtype=torch.float64)  # C3
    linear = [0.570581, 1.743483, -5.060862, -1.011128]
    for readout, expected in (("linear", linear), ("magnitude", [abs(y) for y in linear])):
        close(cua(k, 4, readout=readout)(ONE_TO_FOUR) + ONE_TO_FOUR, expected)
    w, rotation = wavy(6, 8), cua(torch.stack([K, -K]), 8)  # C6
    merged = rotation.merge_into(w).detach()
    close(
        torch.stack([merged.sum(), merged[0, 0], (merged - w).norm()]), [-1.26091818, 0.74293078, 2.78856121], atol=1e-8
    )
    assert torch.linalg.matrix_rank(merged - w) == 6
    close(torch.linalg.svdvals(merged), torch.linalg.svdvals(w), atol=1e-14)


def test_magnitude_is_odd_homogeneous_and_keeps_norms():
    g, x = cua(torch.stack([K, -2 * K]), 10, readout="magnitude", side="output"), torch.randn(7, 10).double()
    value = g(x) + x
    close(g(-3 * x) - 3 * x, -3 * value, atol=1e-13)
    close(value.norm(dim=-1), x.norm(dim=-1), atol=1e-13)
    assert torch.equal(value[:, 8:], x[:, 8:])  # that fill no block
    assert torch.equal(value.sign(), x.sign())


@pytest.mark.filterwarnings("ignore:(Failed to load the CUDA|Setting boft_n_butterfly_factor)")  # PEFT's, without nvcc
@pytest.mark.parametrize("b", [2, 4, 8])
def test_linear_cua_equals_oft_and_boft(b):
    model, x = on_linear(qpeft.CUAConfig(block_size=b, target_modules=["f"]))
    live = model.base_model.model["f"](x)
    s = next(p for p in model.parameters() if p.requires_grad).detach() / 2
    oft = peft.OFTConfig(r=0, oft_block_size=b, use_cayley_neumann=False, target_modules=["f"])
    boft = peft.BOFTConfig(boft_block_size=b, boft_block_num=0, target_modules=["f"])
    for config, parameters in ((oft, -s), (boft, -skew(s)[None])):
        twin = get_peft_model(copy.deepcopy(model).unload(), config).double()
        next(p for p in twin.parameters() if p.requires_grad).data = parameters
        close(twin.base_model.model["f"](x), live, atol=1e-12)


def test_check_values_of_quic():
    a, m = cayley_change(skew(K)) + torch.eye(4), wavy(4, 4)
    close(a[0], [0.847214, -0.394490, -0.313087, -0.169067])  # K1
    close(compounds(a, 2)[1][0], [0.436443, -0.684617, -0.256731, 0.480067, 0.206637, -0.041745])
    close(torch.linalg.det(compounds(m, 2)[1]), 32.41234358, atol=1e-8)  # K2
    a = rotations(K, pyramid(4), 4)  # K3
    close(a[0], [0.573592, 0.714291, 0.386869, 0.105417])
    close(compounds(a, 2)[1][0], [0.776279, 0.571833, 0.172069, 0.188526, 0.071609, 0.010961])
    found = torch.autograd.functional.jacobian(  # K6
        lambda t: compounds(cayley_change(skew(t * K)) + torch.eye(4), 2)[1], torch.zeros((), dtype=torch.float64)
    )
    close(found[:2], [[0, -0.8, -1, 0.4, 0.6, 0], [0.8, 0, -1.2, -0.2, 0, 0.6]])


@pytest.mark.parametrize(
    ("settings", "counts"),  # K4
    [((1, 2), (231, 703, 4005)), ((3, 2), (198, 693, 3825)), ((4, 2), (180, 684, 3784)), ((4, 3), (84, 180, 612))],
)
def test_published_counts_of_quic(settings, counts):
    for width, count in zip((256, 768, 4096), counts, strict=True):
        config = qpeft.QuICConfig.paper(n_blocks=settings[0], order=settings[1], target_modules=["0"])
        assert qpeft.plan(nn.Sequential(nn.Linear(width, width, device="meta")), config).trainable == count


@pytest.mark.parametrize("k", [1, 2, 3])
def test_compounds_are_the_circuit_on_k_excitations(k):
    pennylane = pytest.importorskip("pennylane")
    angles = torch.linspace(-2, 3, 10, dtype=torch.float64)
    turns = [pennylane.SingleExcitation(2 * t, wires=pair) for t, pair in zip(angles.tolist(), pyramid(5), strict=True)]
    circuit = pennylane.matrix(pennylane.prod(*reversed(turns)), wire_order=range(5))
    states = [sum(1 << 4 - wire for wire in subset) for subset in combinations(range(5), k)]
    close(compounds(rotations(angles, pyramid(5), 5), k)[-1], circuit[np.ix_(states, states)].real, atol=1e-14)


@pytest.mark.parametrize("base", ["cayley", "pyramid", "butterfly"])
@pytest.mark.parametrize("multiplier", ["compound", "random"])
def test_quic_is_a_rotation_and_order_1_is_cua(base, multiplier):
    settings = QuICSettings(n_blocks=2, order=3, base=base, multiplier=multiplier)
    rotation = QuICRotation(settings, 30, SeededInit(0)).double()
    rotation.angles.tau.data = torch.randn_like(rotation.angles.tau)
    q = rotation.merge_into(torch.eye(30).double())
    close(q @ q.mT, torch.eye(30), atol=1e-13)
    first = QuICRotation(QuICSettings(n_blocks=2, order=1, side="output"), 8, SeededInit(0)).double()
    first.angles.tau.data = torch.stack([K, -K])
    twin = cua(torch.stack([-2 * K, 2 * K]), 8, side="output")
    close(first.merge_into(wavy(8, 3)), twin.merge_into(wavy(8, 3)).detach(), atol=1e-14)


def quanta(gates, x, axes=(3, 2, 2)):
    """Gates on the pairs of axes of x (..., n), flat."""
    x = x.unflatten(-1, axes)
    for gate, pair in zip(gates, pairs(len(axes)), strict=True):
        x = apply_gate(x, gate, pair)
    return x.flatten(-len(axes))


def test_check_values_of_quanta():
    eye = torch.eye(12, dtype=torch.float64)
    gates = [wavy(n * n).roll(-g).view(n, n) for g, n in enumerate((4, 6, 6))]
    t = quanta(gates, eye).mT  # Q1
    assert pairs(3) == [(-2, -1), (-3, -1), (-3, -2)]
    close(t[0, :4], [0.227131, 1.292321, -2.190032, -0.233162])
    close(torch.stack([t.trace(), t.norm()]), [3.84483806, 15.17809563], atol=1e-8)
    close((t @ torch.arange(1.0, 13).double())[:4], [-4.876549, -0.054248, -17.209719, -22.101175])
    g, h, k = (gate.view(*pair * 2) for gate, pair in zip(gates, ((2, 2), (3, 2), (3, 2)), strict=True))
    close(torch.einsum("efbc,diaf,ghde->ghiabc", g, h, k).reshape(12, 12), t, atol=1e-13)
    near = [torch.eye(len(gate)) + 0.3 * gate for gate in gates]  # Q2
    close(torch.linalg.det(quanta(near, eye)), 0.03395459, atol=1e-8)
    cores = wavy(1, 2, 3, 2), wavy(2, 2, 2, 1)  # M1
    p = apply_mpo(torch.eye(6).double().view(6, 3, 2), cores).flatten(1).mT
    close(p[0], [0.808238, 0.113753, 0.384890, -0.026356, 0.019894, 1.083789])
    close((p @ p.mT).trace(), 13.19465716, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "counts"),  # Q5, M2
    [
        ({}, (6_144, 22_528, 43_008)),
        ({"form": "mpo"}, (1_344, 1_856, 3_136)),
        ({"form": "kron", "axes": [64, 64]}, (8192, 8192, 8192)),
    ],
)
def test_published_counts_of_quanta(settings, counts):
    for width, count in zip((256, 768, 4096), counts, strict=True):
        config = qpeft.QuanTAConfig(**settings, target_modules=["0"])
        assert qpeft.plan(nn.Sequential(nn.Linear(width, width, device="meta")), config).trainable == count
    assert default_axes(1031, 4) == (7, 6, 5, 5)  # a prime width is padded


@pytest.mark.parametrize("config", [qpeft.CUAConfig, partial(qpeft.QuICConfig, n_blocks=1)])
def test_conv1d_merges_exactly_and_is_not_exported(config, tmp_path):
    for kind in (nn.Linear, Conv1D):
        for side in ("input", "output"):
            model, x = on_linear(config(target_modules=["f"], side=side), d=8, o=12, kind=kind)
            live = model.base_model.model["f"](x)
            if kind is Conv1D or side == "output":
                with pytest.raises(ConfigError, match=r"OFT, its equal in PEFT, .*(Conv1D|inputs)"):
                    qpeft.export(model, tmp_path)
            close(model.merge_and_unload()["f"](x), live, atol=1e-13)


def test_merging_in_half_precision_warns_and_unmerging_is_exact():
    model, _ = on_linear(qpeft.CUAConfig(target_modules=["f"]), move_by=1e-3)
    model.bfloat16()
    layer = model.base_model.model["f"]
    before = layer.weight.clone()
    with pytest.warns(QpeftWarning, match="half precision"):
        model.merge_adapter()
    assert 0.5 < (layer.weight == before).float().mean() < 1
    model.unmerge_adapter()
    assert torch.equal(layer.weight, before)
    assert {p.dtype for p in layer.qpeft_adapter.parameters()} == {torch.float64}
