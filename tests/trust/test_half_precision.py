"""Row H of issue 67, and issue 68 point 5: what rounding does to a merged adapter is said, and no
export passes by rounding.
"""

import re

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from variants import VARIANTS, move

import qpeft
from qpeft.core import export
from qpeft.core.export import _write
from qpeft.core.half_precision import inputs_of, output_in_float32
from qpeft.errors import QpeftWarning, VerificationError

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
ROUNDING = r"rounding is ([\d.]+)% of what the adapter adds"
MERGED = ["qpa", "qpa with dora", "quantum_peft", "sora", "attached to lora", "cua", "quanta, mpo"]
FLOAT16 = ["qpa in float16", "cua in float16"]
EXPORTED = ["qpa", "quantum_peft", "sora", "attached to lora", "cua", *FLOAT16]


VALUES = "cua behind values"
BEHIND_VALUES = {"side": "output", "target_modules": ["v_proj"]}  # exported in front of o_proj


@pytest.fixture
def half(llama, request):
    name, _, dtype = request.param.partition(" in ")
    changes = {}
    if name == VALUES:
        name = "cua"
        changes = BEHIND_VALUES
    return move(VARIANTS[name].adapt(llama.to(getattr(torch, dtype or "bfloat16")), **changes))


@pytest.mark.parametrize("half", [*MERGED, *FLOAT16], indirect=True)
@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_h_rounding_of_a_merge_is_said_with_its_size(half, ids, adapters, merge):
    adapters.logits(half, ids)
    layer = half.get_base_model().model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight.float()
    inputs = torch.randn(500, 16)
    exact = output_in_float32(layer, inputs)
    with pytest.warns(QpeftWarning, match=ROUNDING) as warned:
        getattr(half, merge)()
    merged = inputs @ layer.base_layer.weight.float().T
    expected = (merged - exact).norm() / (exact - inputs @ weight.T).norm()
    (said,) = [re.search(ROUNDING, str(w.message))[1] for w in warned if w.category is QpeftWarning]

    assert 0.005 < float(said) == pytest.approx(100 * expected.item(), rel=0.5)


@pytest.mark.parametrize("half", ["sora"], indirect=True)
def test_h_rounding_is_said_where_the_first_layer_adds_nothing(half):
    with torch.no_grad():
        next(iter(half.base_model.generators["default"].gates_by_module().values())).zero_()
    with pytest.warns(QpeftWarning, match=ROUNDING):
        half.merge_adapter()


@pytest.mark.filterwarnings("ignore:merg")
@pytest.mark.parametrize("half", ["qpa", "cua", "attached to lora"], indirect=True)
def test_h_modes_of_single_modules_are_kept(half):
    """As of dropout that somebody has switched off in training."""
    half.train()
    for index, module in enumerate(half.modules()):
        module.training = bool(index % 2)
    modes = [module.training for module in half.modules()]
    half.merge_adapter()
    half.unmerge_adapter()
    assert [module.training for module in half.modules()] == modes


def test_h_merge_in_float32_warns_of_nothing(llama):
    move(VARIANTS["qpa"].adapt(llama)).merge_and_unload()


@pytest.mark.parametrize("half", [*EXPORTED, VALUES], indirect=True)
def test_h_export_from_a_half_base_is_compared_in_float32(half, tmp_path):
    """The report also has what a later merge into this base would lose, as the merge says it."""
    report = qpeft.export(half, tmp_path)
    assert report.max_layer_difference <= 1e-5

    stock = PeftModel.from_pretrained(half.unload(), tmp_path)
    layer = next(m for m in stock.modules() if isinstance(m, BaseTunerLayer))
    inputs = inputs_of(layer)
    plain = output_in_float32(layer.base_layer, inputs)
    exact = output_in_float32(layer, inputs)
    stock.merge_adapter()
    change = output_in_float32(layer.base_layer, inputs) - exact

    assert report.lost_by_merging == pytest.approx((change.norm() / (exact - plain).norm()).item())


@pytest.mark.parametrize("half", ["qpa", "cua", VALUES], indirect=True)
def test_h_error_below_the_rounding_of_logits_is_refused(half, tmp_path, monkeypatch):
    """One layer is wrong by 0.1 %."""

    def write(stock, *others):
        key = next(key for key in stock.tensors if "layers.1.self_attn.o_proj" in key)
        stock.tensors[key] = stock.tensors[key] * 1.001
        _write(stock, *others)

    monkeypatch.setattr(export, "_write", write)

    with pytest.raises(VerificationError, match=r"layers\.1\.self_attn\.o_proj .* in float32"):
        qpeft.export(half, tmp_path / "half")
