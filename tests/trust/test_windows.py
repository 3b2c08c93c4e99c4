"""What others do inside of a window of accelerate's gradient accumulation: the gradients are those of
a plain PyTorch loop at every moment.
"""

import copy

import pytest
import torch
from accelerate.state import GradientState
from variants import VARIANTS, move, trained

import qpeft

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here


SORA = pytest.param("sora", marks=pytest.mark.long)  # its window is that of QPA


@pytest.fixture(params=["qpa", "quantum_peft", SORA, "attached to lora"])
def make(llama, request):
    def adapted():
        torch.manual_seed(0)  # of PEFT's own initial values, below `attach`
        return move(VARIANTS[request.param].adapt(copy.deepcopy(llama)))

    return adapted


@pytest.fixture
def set_sync():
    GradientState._reset_state()
    yield GradientState()._set_sync_gradients
    GradientState._reset_state()


def loss(model, ids):
    return model(input_ids=ids, labels=ids).loss


def assert_gradients(model, expected):
    parameters = trained(model)
    model.requires_grad_(False)  # as another active adapter freezes them before the step
    torch.optim.SGD(parameters, lr=0).step()
    gradients = [p.grad for p in parameters], [p.grad for p in trained(expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def freeze_and_move(model):
    parameters = trained(model)
    for is_trained in (False, True):
        for parameter in parameters:
            parameter.requires_grad_(is_trained)
        model.to("cpu")


ACTIONS = {
    "cast": lambda model: model.double().float(),
    "freeze": freeze_and_move,
    "load": lambda model: model.load_state_dict(model.state_dict()),
    "clip": lambda model: torch.nn.utils.clip_grad_norm_(trained(model), 1e9),
}


@pytest.mark.parametrize("last_waits", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
def test_no_micro_batch_is_lost_by_what_happens_between(make, ids, set_sync, action, last_waits):
    model = make()
    expected = make()
    for index, row in enumerate(ids.split(1)):
        set_sync(index == len(ids) - 1 and not last_waits)
        loss(model, row).backward()
        ACTIONS[action](model)
        set_sync(True)
        loss(expected, row).backward()

    assert_gradients(model, expected)


@pytest.mark.parametrize("of_one", [True, False])
def test_gradient_that_is_written_between_micro_batches_replaces_the_one_before(
    make, ids, set_sync, of_one
):
    """As in gradient surgery, with noise for privacy, or a gradient that was received."""
    model, expected = make(), make()
    for each, syncs in ((model, False), (expected, True)):
        set_sync(syncs)
        loss(each, ids[:1]).backward()
        for parameter in trained(each)[: 1 if of_one else None]:
            parameter.grad = torch.full_like(parameter, 0.01)
        set_sync(True)
        loss(each, ids[1:]).backward()

    assert_gradients(model, expected)


@pytest.mark.parametrize(
    "clear", [lambda p: setattr(p, "grad", None), lambda p: delattr(p, "grad")]
)
def test_gradient_of_one_parameter_is_cleared_between_micro_batches(make, ids, set_sync, clear):
    model, expected = make(), make()
    for each, syncs in ((model, False), (expected, True)):
        set_sync(syncs)
        loss(each, ids[:1]).backward()
        clear(trained(each)[0])
        set_sync(True)
        loss(each, ids[1:]).backward()

    assert_gradients(model, expected)


def gradients_of_a_loop(model, ids, n_steps=3, before_step=lambda step: None):
    """Those behind the first step."""
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    for step in range(n_steps):
        before_step(step)
        optimizer.zero_grad()
        loss(model, ids).backward()
        if step:
            yield [p.grad.clone() for p in trained(model)]
        optimizer.step()


def test_loop_inside_of_the_windows_of_another_model_has_gradients(make, ids, set_sync):
    """As of a critic next to a policy under accelerate, whose state is that of the process, or after
    a Trainer that was interrupted.
    """
    expected = [*gradients_of_a_loop(make().double(), ids, 6)]
    found = [*gradients_of_a_loop(make().double(), ids, 6, lambda step: set_sync(step % 2))]
    torch.testing.assert_close(found, expected)


def test_gradients_are_complete_whenever_somebody_reads_them(make, ids, set_sync):
    """A hand-written loop after a window that was left, or next to a model that accumulates, had
    gradients of 0 without a word; so had whoever clips or logs inside of a window.
    """
    model, expected = make().double(), make().double()
    for one in (model, expected):
        set_sync(one is expected)
        for _ in range(3):
            loss(one, ids).backward()
            with torch.no_grad():
                for parameter in trained(one):
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    torch.testing.assert_close(trained(model), trained(expected))


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_validation_with_an_average_inside_of_a_window_changes_no_gradient(
    make, ids, set_sync, when
):
    """The gradient of a micro-batch went through the graph of the average."""

    def validate(model):
        own = [parameter.data.clone() for parameter in trained(model)]
        for parameter in trained(model):
            parameter.data *= 0.5
        with torch.no_grad():
            model(input_ids=ids)
        for parameter, value in zip(trained(model), own, strict=True):
            parameter.data.copy_(value)

    found = []
    for validates in (False, True):
        model = make().double()
        for index, row in enumerate(ids.split(1)):
            set_sync(index == len(ids) - 1)
            if validates and when == "before":
                validate(model)
            value = loss(model, row)
            if validates and when == "between":
                validate(model)
            value.backward()
            if validates and when == "after":
                validate(model)
        found.append([parameter.grad for parameter in trained(model)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_optimizer_of_a_part_clears_its_own_gradients_inside_of_a_window(
    make, ids, set_sync, set_to_none
):
    model, expected = make().double(), make().double()
    for one in (model, expected):
        first = torch.optim.SGD(trained(one)[:1], lr=0.1)
        for index, row in enumerate(ids.split(1)):
            set_sync(one is expected or index == len(ids) - 1)
            loss(one, row).backward()
            if index == 0:
                first.zero_grad(set_to_none)
    assert_gradients(model, expected)


@pytest.mark.parametrize("frozen", [(1,), (2,), (1, 2), (0, 2)])
def test_parameter_that_is_frozen_in_a_window_keeps_its_micro_batches(make, ids, set_sync, frozen):
    """And gets none of those in which it is frozen."""
    model = make()
    expected = make()
    firsts = [trained(one)[0] for one in (model, expected)]
    rows = torch.cat([ids, ids.flip(1)])[:3].split(1)
    for index, row in enumerate(rows):
        for first in firsts:
            first.requires_grad_(index not in frozen)
        set_sync(index == len(rows) - 1)
        loss(model, row).backward()
        set_sync(True)
        loss(expected, row).backward()

    assert_gradients(model, expected)


@pytest.mark.parametrize("changes_at", [1, 2])
@pytest.mark.parametrize("n_changed, thaws", [(1, False), (1, True), (None, False)])
def test_parameters_that_are_frozen_between_backward_passes(
    make, ids, set_sync, changes_at, n_changed, thaws
):
    """All forward passes come first; one or all parameters change before one backward pass."""
    model = make().double()  # the sum of two gradients cancels digits
    expected = make().double()
    for one, is_window in ((model, True), (expected, False)):
        changed = trained(one)[:n_changed]
        for parameter in changed:
            parameter.requires_grad_(not thaws)
        losses = [loss(one, row) for row in ids.split(1)]
        for index, value in enumerate(losses):
            if index == changes_at:
                for parameter in changed:
                    parameter.requires_grad_(thaws)
            set_sync(not is_window or index == len(losses) - 1)
            value.backward()
        for parameter in changed:
            parameter.requires_grad_(True)

    assert_gradients(model, expected)


def test_hooks_of_parameters_run_once_for_each_micro_batch(make, ids, set_sync):
    model = make()
    expected = make()
    for parameter, other in zip(trained(model), trained(expected), strict=True):
        parameter.register_hook(lambda gradient: gradient + 1)
        other.grad = torch.ones_like(other)
    loss(expected, ids).backward()
    set_sync(False)
    loss(model, ids).backward()

    assert_gradients(model, expected)


def test_returned_gradients_are_right_and_add_nothing(make, ids, set_sync):
    """`torch.autograd.grad` inside of a window."""
    model = make()
    expected = make()
    loss(expected, ids).backward()
    set_sync(False)
    loss(model, ids).backward()
    returned = torch.autograd.grad(loss(model, ids), trained(model))

    torch.testing.assert_close(returned, tuple(p.grad for p in trained(expected)))
    set_sync(True)
    assert_gradients(model, expected)


def test_cast_between_forward_and_backward_pass_is_refused(make, ids):
    """Where stock parameters keep their gradient, that of a generator was lost."""
    model = make()
    value = loss(model, ids)
    model.double()
    with pytest.raises(RuntimeError, match="cast or moved"):
        value.backward()


def test_adapter_loads_and_answers_in_inference_mode(make, llama, ids, tmp_path):
    """As a server does it; tensors made in it have no version counter."""
    saved = make()
    saved.save_pretrained(tmp_path)
    with torch.inference_mode():
        loaded = qpeft.load(llama, tmp_path)
        assert torch.equal(loaded(ids).logits, saved(ids).logits)
