"""CUA, QuIC and QuanTA: published values (C1, K1, ...), their equals in PEFT, their circuits,
merging.
"""

import copy
import subprocess
import sys
from dataclasses import make_dataclass
from functools import partial
from itertools import combinations

import numpy as np
import peft
import pytest
import tiny_models
import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, LlamaConfig
from variants import move, trained

import qpeft
from qpeft.circuits.cayley import cayley_change, skew
from qpeft.circuits.numerics import apply_gates
from qpeft.core.linear_tuner import LinearAdapter
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.cua.model import CUARotation
from qpeft.methods.quanta.model import apply_mpo, default_axes, pairs
from qpeft.methods.quic.compound import butterfly, compounds, pyramid, rotations
from qpeft.methods.quic.model import QuICRotation
from qpeft_lab import RunSettings, train

K = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)  # angles of a width of 4
K6 = torch.tensor([*K[:5], 6], dtype=torch.float64)
X = torch.arange(1, 5, dtype=torch.float64)
EYE = torch.eye(12, dtype=torch.float64)


def wavy(*shape):
    """sin(1), sin(4), sin(9), ..., row by row."""
    return (
        torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
        .square()
        .sin()
        .view(shape)
    )


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0
    )


def turned(rotation, values):
    """The rotation with these parameters, in float64."""
    rotation.double().angles.tau.data = values
    return rotation


def cua(values, width, **settings):
    return turned(
        CUARotation(qpeft.CUAConfig(**settings), "f", (width, width), SeededInit(0)), values
    )


def quic(width, **settings):
    return QuICRotation(qpeft.QuICConfig(**settings), "f", (width, width), SeededInit(0))


def on_linear(config, spread=0.3):
    """A float64 model with one linear map `f`, adapted, with changed parameters."""
    return move(
        peft.get_peft_model(nn.ModuleDict({"f": nn.Linear(8, 6)}).double(), config), spread=spread
    )


def cay(k):
    return cayley_change(skew(k)) + torch.eye(4)


def quanta(gates, x):
    """Gates on the pairs of axes 3, 2, 2 of x (..., 12)."""
    return apply_gates(x.unflatten(-1, (3, 2, 2)), gates, pairs(3)).flatten(-3)


# -- CUA: the published values C1 to C6; C4, noise and shots, is in training/test_measured.py


def test_c1_one_block_of_two():
    rotation = cua(torch.ones(1, 1).double(), 2, block_size=2)
    close(rotation.merge_into(EYE[:2, :2]), [[0.6, -0.8], [0.8, 0.6]])


def test_c2_cayley_transform():
    close(cay(K / 2)[0], [0.942341, -0.184868, -0.211744, -0.181611])


def test_c2_rotated_vector():
    close(cua(K[None], 4)(X) + X, [-0.789071, -1.002362, 0.427804, 5.309390])


def test_c3_rotated_vector():
    linear = [0.570581, 1.743483, -5.060862, -1.011128]
    close(cua(K6[None], 4)(X) + X, linear)
    close(cua(K6[None], 4, readout="magnitude")(X) + X, [abs(value) for value in linear])


def test_c6_merged_weight():
    weight = wavy(6, 8)
    merged = cua(torch.stack([K, -K]), 8).merge_into(weight).detach()
    change = merged - weight
    close(
        torch.stack([merged.sum(), merged[0, 0], change.norm()]),
        [-1.26091818, 0.74293078, 2.78856121],
    )
    close(torch.linalg.svdvals(merged), torch.linalg.svdvals(weight))

    assert torch.linalg.matrix_rank(change) == 6


# -- QuIC: the published values K1 to K6


def test_k1_cayley_transform_and_its_compound():
    close(cay(K)[0], [0.847214, -0.394490, -0.313087, -0.169067])
    close(
        compounds(cay(K), 2)[1][0],
        [0.436443, -0.684617, -0.256731, 0.480067, 0.206637, -0.041745],
    )


def test_k2_determinant_of_a_compound():
    close(torch.linalg.det(compounds(wavy(4, 4), 2)[1]), 32.41234358)


def test_k3_pyramid_and_its_compound():
    ring = rotations(K, pyramid(4), 4)
    close(ring[0], [0.573592, 0.714291, 0.386869, 0.105417])
    close(
        compounds(ring, 2)[1][0],
        [0.776279, 0.571833, 0.172069, 0.188526, 0.071609, 0.010961],
    )


def test_k6_slope_of_a_compound():
    def of_step(t):
        return compounds(cay(t * K), 2)[1]

    slope = torch.autograd.functional.jacobian(of_step, torch.zeros((), dtype=torch.float64))
    close(slope[:2], [[0, -0.8, -1, 0.4, 0.6, 0], [0.8, 0, -1.2, -0.2, 0, 0.6]])


# -- QuanTA: the published values Q1 to Q4, and M1 of the matrix product operator


@pytest.fixture(scope="module")
def gates():
    """On the pairs of the axes 3, 2, 2: the last two, and the first with each of them."""
    return [wavy(n * n).roll(-g).view(n, n) for g, n in enumerate((4, 6, 6))]


@pytest.fixture(scope="module")
def product(gates):
    """The matrix (12, 12) of these gates."""
    return quanta(gates, EYE).mT


def test_random_multiplier_has_the_mean_square_of_compounds():
    """Of what each angle changes: 28 gates on 8 wires, one at a time."""
    angles = 1e-4 * torch.eye(28).double()
    compound = compounds(rotations(angles, pyramid(8), 8), 2)[1]  # (28, 28, 28)
    change = (compound - torch.eye(28)) / 1e-4
    rotation = quic(36, n_blocks=1, order=2, base="pyramid", multiplier="random")
    expected = change.triu(1).square().sum().item()

    assert rotation.weight_2.square().sum().item() == pytest.approx(expected, rel=0.25)


def test_q1_matrix_of_gates(product):
    close(product[0, :4], [0.227131, 1.292321, -2.190032, -0.233162])
    vector = torch.arange(1, 13, dtype=torch.float64)
    close((product @ vector)[:4], [-4.876549, -0.054248, -17.209719, -22.101175])
    close(torch.stack([product.trace(), product.norm()]), [3.84483806, 15.17809563])


def test_q1_is_the_contraction_of_the_paper(gates, product):
    pairs_of_axes = [(2, 2), (3, 2), (3, 2)]
    four_axes = [gate.view(*pair, *pair) for gate, pair in zip(gates, pairs_of_axes, strict=True)]
    close(product, torch.einsum("efbc,diaf,ghde->ghiabc", *four_axes).reshape(12, 12))


def test_q2_determinant_of_gates_near_the_identity(gates):
    near = [torch.eye(len(gate)) + 0.3 * gate for gate in gates]
    close(torch.linalg.det(quanta(near, EYE)), 0.03395459)


def test_q3_orthogonal_gates_make_an_orthogonal_matrix(gates):
    turned_by = quanta([torch.linalg.qr(gate)[0] for gate in gates], EYE)
    close(turned_by @ turned_by.mT, EYE)


def test_q3_rank_of_changed_gates(gates, product):
    """Full with all gates changed; of one changed by rank k, k times the other axes."""
    all_changed = [gate + gate.flip(0) / 9 for gate in gates]
    first_changed = [gates[0] + torch.outer(wavy(4), wavy(4)), *gates[1:]]
    assert torch.linalg.matrix_rank(quanta(all_changed, EYE).mT - product) == 12
    assert torch.linalg.matrix_rank(quanta(first_changed, EYE).mT - product) == 3


def test_q4_one_gate_on_all_axes_is_its_kronecker_product():
    kron = torch.kron(wavy(3, 3), wavy(4, 4))
    close(apply_gates(EYE.unflatten(-1, (3, 4)), [kron], pairs(2)).flatten(-2).mT, kron)


def test_m1_matrix_product_operator():
    cores = [wavy(1, 2, 3, 2), wavy(2, 2, 2, 1)]
    matrix = apply_mpo(EYE[:6, :6].view(6, 3, 2), cores).flatten(1).mT
    close(matrix[0], [0.808238, 0.113753, 0.384890, -0.026356, 0.019894, 1.083789])
    close((matrix @ matrix.mT).trace(), 13.19465716)
    assert torch.linalg.matrix_rank(matrix) == 4


# -- counts, widths, signs


COUNTS = [  # K4, Q5, M2, F2: parameters of square maps of width 256, 768 and 4096
    (partial(qpeft.QuICConfig, side="output", n_blocks=1), (231, 703, 4005)),
    (partial(qpeft.QuICConfig, side="output", n_blocks=3), (198, 693, 3825)),
    (partial(qpeft.QuICConfig, side="output", n_blocks=4, order=3), (84, 180, 612)),
    (qpeft.QuICConfig, (180, 684, 3784)),
    (qpeft.CUAConfig, (384, 1152, 6144)),
    (qpeft.QuanTAConfig, (6144, 22_528, 43_008)),
    (partial(qpeft.QuanTAConfig, form="mpo"), (1344, 1856, 3136)),
    (partial(qpeft.QuanTAConfig, form="mpo", bond=9), (5904, 7056, 12_816)),
    (partial(qpeft.QuanTAConfig, form="mpo", bond=17), (19_856, 22_032, 41_616)),
    (
        partial(
            qpeft.QAAConfig,
            ansatz="all_pairs",
            readout="last_r",
            n_layers=4,
        ),
        (1280, 2736, 9920),
    ),
]


@pytest.mark.parametrize("config, counts", COUNTS)
def test_published_counts(config, counts):
    bases = [nn.Sequential(nn.Linear(n, n, device="meta")) for n in (256, 768, 4096)]
    assert (
        tuple(qpeft.plan(base, config(target_modules=["0"])).trainable for base in bases) == counts
    )
    assert default_axes(1031, 4) == (7, 6, 5, 5)  # a prime width is padded


def test_quic_at_other_widths_and_as_oft():
    """K4: the example of the author, and the numbers of an export."""
    assert quic(1024, n_blocks=1).n == 44
    assert [quic(width).oft_weight().numel() for width in (256, 768)] == [8064, 73_344]


def test_values_that_fill_no_block_of_an_input_are_not_rotated():
    for rotation in (
        cua(K[None], 5),
        turned(quic(5, n_blocks=1), torch.full((1, 1), 0.7).double()),
    ):
        q = rotation.merge_into(EYE[:5, :5])
        close(q @ q.mT, EYE[:5, :5], 1e-12)
        assert q[0, 0] != 1
        assert torch.equal(q[4], EYE[4, :5])


def test_magnitudes_are_odd_and_homogeneous_and_keep_the_norm():
    rotated = [cua(K6[None], 4, readout="magnitude")(x) + x for x in (X, -X, 3 * X)]
    close(
        torch.stack([-rotated[1], rotated[2] / 3]),
        torch.stack([rotated[0]] * 2),
        1e-12,
    )
    close(rotated[0].norm(), X.norm(), 1e-12)


def test_cua_of_every_map_of_smollm2_135m():
    """C5: the count decides which side was published."""
    widths = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    base = LlamaConfig(num_hidden_layers=30, **widths)
    counts = [
        qpeft.plan(base, qpeft.CUAConfig(side=side)).trainable for side in ("input", "output")
    ]

    assert counts == [224_640, 233_280]


LOAD = """
import sys
sys.modules["qpeft"] = None
import peft, torch, transformers
for folder in sys.argv[1:]:
    base = transformers.LlamaForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float64)
    model = peft.PeftModel.from_pretrained(base, f"{folder}/exported")
    torch.save(model(torch.arange(8)[None]).logits.detach(), f"{folder}/logits")
"""


def rotated_behind_v_proj(folder, config):
    """The logits of a model whose adapter is exported."""
    llama = tiny_models.llama(num_attention_heads=4, num_key_value_heads=2).double()
    llama.save_pretrained(folder / "base")
    config = partial(
        config,
        side="output",
        layers_to_transform=[1],
        task_type="CAUSAL_LM",
    )
    plan = qpeft.plan(llama, config(target_modules=["v_proj"]))
    model = move(peft.get_peft_model(llama, config(target_modules=["v_proj"])), spread=0.3)

    # 2 of a head, each for 2 query heads
    assert qpeft.export(model, folder / "exported").n_deployed == plan.deployed == 8

    return model(torch.arange(8)[None]).logits.detach()


def trained_rotation(folder, text_file, method):
    """The logits of a model that was trained by a run, whose adapter it exported to `folder`."""
    base = folder.with_name(f"base of {folder.name}")
    tiny_models.save_base(base, tiny_models.llama(vocab_size=257))
    small = {
        "steps": 3,
        "batch_size": 2,
        "seq_len": 32,
        "eval_blocks": 2,
        "lr": 0.1,
    }
    train(
        RunSettings(
            model=str(base),
            data=str(text_file),
            out=str(folder),
            method=method,
            **small,
        )
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    model.save_pretrained(folder / "base")
    ids = torch.arange(8)[None]
    untrained = model(torch.arange(8)[None]).logits.detach()
    trained = qpeft.load(model, folder / "adapter")(ids).logits.detach()

    assert (trained - untrained).abs().max() > 1e-3

    return trained


@pytest.mark.parametrize(
    "in_new_process",
    [
        False,
        pytest.param(True, marks=pytest.mark.long),
    ],
)
def test_rotations_are_exported_as_oft_that_loads_without_qpeft(
    tmp_path, text_file, monkeypatch, in_new_process
):
    """All in one process: a new one takes seconds to import PEFT."""
    cua_config = partial(qpeft.CUAConfig, block_size=2)
    quic_config = partial(qpeft.QuICConfig, n_blocks=4, order=1)
    live = {
        "cua behind v_proj": partial(rotated_behind_v_proj, config=cua_config),
        "quic behind v_proj": partial(rotated_behind_v_proj, config=quic_config),
        "trained cua": partial(trained_rotation, text_file=text_file, method="cua"),
        "trained quic": partial(trained_rotation, text_file=text_file, method="quic"),
    }
    logits = {tmp_path / name: make(tmp_path / name) for name, make in live.items()}
    if in_new_process:
        subprocess.run([sys.executable, "-c", LOAD, *logits], check=True)
    else:
        monkeypatch.setitem(sys.modules, "qpeft", None)
        monkeypatch.setattr(sys, "argv", ["load", *logits])
        exec(LOAD, {})
    for folder, expected in logits.items():
        close(
            torch.load(folder / "logits"),
            expected,
            1e-10 if "behind" in folder.name else 1e-6,
        )


@pytest.mark.parametrize(
    "changes, settings, reason",
    [
        ({"attention_bias": True}, {}, "v_proj without bias"),
        ({}, {"target_modules": ["k_proj"]}, "k_proj; .* v_proj without bias"),
        ({}, {"modules_to_save": ["o_proj"]}, "o_proj that is not trained"),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, {}, "divide a head of 2"),
        ({}, {"side": "input", "block_size": 5}, "divide 16, the width of .*v_proj"),
    ],
)
def test_other_rotations_have_no_oft(tmp_path, changes, settings, reason):
    config = qpeft.CUAConfig(**{"side": "output", "target_modules": ["v_proj"], **settings})
    with pytest.raises(ConfigError, match=f"no stock PEFT adapter .*{reason}"):
        qpeft.export(
            peft.get_peft_model(tiny_models.llama(**changes), config), tmp_path / "exported"
        )


@pytest.mark.parametrize("is_meta", [False, True])
def test_rotation_in_front_of_a_gate_has_no_oft(tmp_path, is_meta):
    """Also without weights, where nothing can be compared."""
    llama = tiny_models.llama().to("meta" if is_meta else "cpu")
    model = peft.get_peft_model(llama, qpeft.CUAConfig(side="output", target_modules=["v_proj"]))
    llama.config.model_type = "afmoe"  # whose attention ends in a gate
    with pytest.raises(ConfigError, match="in models of type"):
        qpeft.export(model, tmp_path / "exported")


def test_angles_that_are_not_finite_are_not_exported(llama, tmp_path):
    model = peft.get_peft_model(llama, qpeft.CUAConfig(target_modules=["v_proj"]))
    torch.nn.init.constant_(trained(model)[0], float("nan"))
    with pytest.raises(ConfigError, match="not finite"):
        qpeft.export(model, tmp_path / "exported")


# PEFT's, without nvcc
@pytest.mark.filterwarnings("ignore:(Failed to load the CUDA|Setting boft_n_butterfly_factor)")
@pytest.mark.parametrize("b", [2, 4, 8])
def test_linear_cua_equals_oft_and_boft(b):
    model = on_linear(qpeft.CUAConfig(block_size=b, target_modules=["f"]))
    x = wavy(5, 8)
    s = trained(model)[0].detach() / 2
    oft = peft.OFTConfig(
        r=0,
        oft_block_size=b,
        use_cayley_neumann=False,
        target_modules=["f"],
    )
    boft = peft.BOFTConfig(boft_block_size=b, boft_block_num=0, target_modules=["f"])
    for config, parameters in ((oft, -s), (boft, -skew(s)[None])):
        twin = peft.get_peft_model(copy.deepcopy(model).unload(), config).double()
        trained(twin)[0].data = parameters
        close(
            twin.base_model.model["f"](x),
            model.base_model.model["f"](x).detach(),
            atol=1e-12,
        )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_compounds_are_the_circuit_on_k_excitations(k):
    pennylane = pytest.importorskip("pennylane")
    angles = torch.linspace(-2, 3, 10, dtype=torch.float64)
    turns = [
        pennylane.SingleExcitation(2 * t, wires=pair)
        for t, pair in zip(angles.tolist(), pyramid(5), strict=True)
    ]
    circuit = pennylane.matrix(pennylane.prod(*reversed(turns)), wire_order=range(5))
    states = [sum(1 << 4 - wire for wire in subset) for subset in combinations(range(5), k)]
    close(
        compounds(rotations(angles, pyramid(5), 5), k)[-1],
        circuit[np.ix_(states, states)].real,
        atol=1e-14,
    )


def test_butterfly_has_the_pairs_of_a_fast_fourier_transform():
    assert butterfly(4) == [(0, 1), (2, 3), (0, 2), (1, 3)]
    assert quic(3, n_blocks=1, order=1, base="butterfly").n == 2


@pytest.mark.parametrize(
    "base, n_angles",
    [
        ("cayley", 6),
        ("pyramid", 6),
        ("butterfly", 4),
    ],
)
@pytest.mark.parametrize("multiplier", ["compound", "random"])
def test_quic_is_a_rotation_with_exact_gradients_and_order_1_is_cua(base, n_angles, multiplier):
    rotation = quic(15, n_blocks=1, order=3, base=base, multiplier=multiplier)
    q = turned(rotation, torch.randn_like(rotation.angles.tau).double()).merge_into(
        torch.eye(15).double()
    )
    close(q @ q.mT, torch.eye(15), atol=1e-13)
    after = partial(functional_call, rotation, args=(wavy(15),))

    assert rotation.angles.tau.numel() == n_angles
    assert torch.autograd.gradcheck(lambda s: after({"angles.tau": s}), rotation.angles.tau)

    first = quic(8, n_blocks=2, order=1, side="output")
    twin = cua(torch.stack([-2 * K, 2 * K]), 8, side="output").merge_into(wavy(8, 3)).detach()
    close(turned(first, torch.stack([K, -K])).merge_into(wavy(8, 3)), twin, atol=1e-14)


def test_merging_in_half_precision_warns_and_unmerging_is_exact():
    model = on_linear(qpeft.CUAConfig(target_modules=["f"]), spread=1e-3).bfloat16()
    layer = model.base_model.model["f"]
    before = layer.weight.clone()
    with pytest.warns(QpeftWarning, match="half precision"):
        model.merge_adapter()

    assert 0.5 < (layer.weight == before).float().mean() < 1

    model.unmerge_adapter()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "side, shape",
    [
        ("input", (5, 5)),
        ("output", (3, 3)),
        ("parallel", (5, 3)),
    ],
)
def test_merge_of_any_linear_change(side, shape):
    class Change(LinearAdapter):
        def change(self, x):
            return x @ matrix

    matrix, weight, x = (
        torch.randn(*size, dtype=torch.float64) for size in (shape, (3, 5), (4, 5))
    )
    adapter = Change(side, make_dataclass("Settings", ())())
    y = x @ weight.mT
    expected = (
        (x + x @ matrix) @ weight.mT
        if side == "input"
        else y + (y if side == "output" else x) @ matrix
    )
    close(x @ adapter.merge_into(weight).mT, expected, 1e-12)
