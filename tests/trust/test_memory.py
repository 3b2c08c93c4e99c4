"""Row D of issue 67: a model that was deleted is freed, with its adapter and its autograd graph."""

import copy
import gc
import weakref

import pytest
from torch import Tensor
from variants import TUNERS, VARIANTS

from qpeft_lab import RunSettings, train

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def assert_freed(references):
    gc.collect()
    assert {type(each()) for each in references} == {type(None)}


def test_d_deleted_model_is_freed(llama, ids, adapters, variant):
    """Built, trained for a step and evaluated; a loss that is kept does not keep the model."""
    model = variant.adapt(copy.deepcopy(llama))
    loss = model(input_ids=ids, labels=ids).loss
    adapters.train(model, ids, steps=1)
    adapters.logits(model, ids)
    modules = [weakref.ref(module) for module in model.modules()]
    del model

    assert_freed(modules)
    assert loss.requires_grad


@pytest.mark.parametrize("variant", TUNERS, indirect=True)
def test_d_deleted_adapter_is_freed(llama, ids, adapters, variant):
    model = variant.adapt(llama)
    model.add_adapter("other", variant.make_config())
    model.set_adapter("other")
    adapters.train(model, ids, steps=1)
    own = [weakref.ref(p) for name, p in model.named_parameters() if ".other" in name]
    model.set_adapter("default")
    model.delete_adapter("other")

    assert_freed(own)


def count_tensors():
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("method", ["qpa", pytest.param("sora", marks=pytest.mark.long)])
def test_d_runs_in_a_loop_leave_no_tensors(tiny_model, text_file, tmp_path, method):
    counts = []
    for number in range(3):
        paths = {"model": tiny_model, "data": text_file, "out": tmp_path / f"{number}"}
        sizes = {"steps": 2, "seq_len": 16, "eval_blocks": 1}
        train(
            RunSettings(**{key: str(path) for key, path in paths.items()}, method=method, **sizes)
        )
        counts.append(count_tensors())
    assert counts[2] == counts[1]  # the first fills caches


@pytest.mark.long
def test_d_memory_is_flat_over_fifty_models(llama, ids, adapters, variant):
    counts = []
    for number in range(50):
        adapters.train(variant.adapt(copy.deepcopy(llama)), ids, steps=1)
        if number in (1, 49):
            counts.append(count_tensors())
    assert counts[1] == counts[0]
