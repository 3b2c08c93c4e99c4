import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Killed, Recorder, assert_same_result, kill_at, losses

from qpeft.errors import ConfigError
from qpeft.training import train
from qpeft.training.evolution import EvolutionTrainer, estimate_gradient

FRAMED = {"r": 2, "frame": "random", "frame_rank": 4, "share": "type", "n_layers": 1}

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:angles move at most:UserWarning"),
]


def quadratic():
    """A convex function of two parameters, (2, 3) and (4,), the parameters, and its gradient by autograd."""
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(10, 10, generator=draw)
    parameters = [torch.nn.Parameter(torch.randn(*shape, generator=draw)) for shape in ((2, 3), (4,))]

    def loss():
        x = torch.cat([p.flatten() for p in parameters])
        return x @ root @ root.T @ x / 2 + x.sum()

    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters)])
    return loss, parameters, gradient


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def test_estimate_converges_to_the_gradient_of_autograd():
    loss, parameters, gradient = quadratic()

    def error(pairs):
        _, estimate = estimate_gradient(loss, parameters, pairs=pairs, sigma=0.1, seed=0, step=0)
        return ((flat(estimate) - gradient).norm() / gradient.norm()).item()

    # the error of n parameters and p pairs is about sqrt((n + 1) / p)
    errors = [error(pairs) for pairs in (20, 320, 5120)]
    assert all(after < before / 2 for before, after in pairwise(errors))
    assert errors[-1] < 2 * (11 / 5120) ** 0.5


def test_estimate_of_one_pair_is_the_slope_along_its_direction():
    loss, parameters, gradient = quadratic()
    _, estimate = estimate_gradient(loss, parameters, pairs=1, sigma=0.5, seed=3, step=7)
    draw = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, 0, 7]))
    direction = torch.from_numpy(np.concatenate([draw.standard_normal(n, dtype=np.float32) for n in (6, 4)]))
    expected = direction * (direction @ gradient)  # exact for a quadratic function, whatever sigma
    torch.testing.assert_close(flat(estimate), expected, rtol=1e-4, atol=1e-3)


def test_directions_depend_on_seed_step_and_pair_alone():
    loss, parameters, _ = quadratic()

    def estimate(pairs=2, **key):
        return flat(estimate_gradient(loss, parameters, pairs=pairs, sigma=0.1, **{"seed": 0, "step": 0, **key})[1])

    torch.manual_seed(5)
    once = estimate()
    torch.rand(3)
    assert torch.equal(once, estimate())
    for other in (estimate(seed=1), estimate(step=1), estimate(pairs=1)):
        assert not torch.allclose(once, other)


def test_parameters_are_restored_bit_for_bit_also_after_an_error():
    loss, parameters, _ = quadratic()
    before = flat(parameters).clone()

    def fails():
        assert not any(p.requires_grad for p in parameters)
        raise RuntimeError

    estimate_gradient(loss, parameters, pairs=3, sigma=0.3, seed=0, step=0)
    assert torch.equal(flat(parameters), before)
    with pytest.raises(RuntimeError):
        estimate_gradient(fails, parameters, pairs=3, sigma=0.3, seed=0, step=0)
    assert torch.equal(flat(parameters), before)
    assert all(p.requires_grad for p in parameters)


def kept_for_backward(run):
    """Numbers that autograd keeps for backward passes during `run()`, without parameters themselves."""
    kept = []

    def pack(tensor):
        if not tensor.is_leaf:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept)


def test_no_activation_is_kept_for_a_backward_pass(settings):
    same = {"steps": 2, "lr": 1e-3, "method_settings": {"r": 1, "target_modules": ["c_attn"]}}
    estimated = kept_for_backward(lambda: train(settings("es", optimizer="es", es_pairs=2, **same)))
    computed = kept_for_backward(lambda: train(settings("adamw", **same)))
    assert estimated < 5_000 < computed / 10


def test_run_calls_the_model_twice_per_pair_and_reports_it(settings, monkeypatch):
    calls = []
    forward = EvolutionTrainer.__base__.compute_loss
    monkeypatch.setattr(
        EvolutionTrainer.__base__,
        "compute_loss",
        lambda self, model, *rest, **more: calls.append(model.training) or forward(self, model, *rest, **more),
    )
    progress = Recorder()
    train(
        settings(optimizer="es", es_pairs=3, steps=2, lr=1e-3, method="quantum_peft", method_settings=FRAMED), progress
    )
    assert calls == [False] * (2 * 3 * 2 * 2)  # without dropout; pairs, micro-batches and steps
    assert "forward passes: 24, 12 in each of the steps" in progress.events


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("es", {"method": "quantum_peft", "method_settings": FRAMED, "es_pairs": 4}),
        ("mezo", {"method": "full", "lr": 1e-5}),
    ],
)
def test_killed_run_resumes_bit_for_bit(settings, optimizer, changes):
    same = {"lr": 2e-3, **changes, "optimizer": optimizer, "save_every": 2}
    unbroken = train(settings("unbroken", **same))
    for step in (3, 5):
        with pytest.raises(Killed):
            train(settings(**same), kill_at(step))
    resumed = train(settings(**same))
    assert_same_result(resumed.out, unbroken.out)
    assert losses(train(settings("other", **same, seed=1)).out) != losses(unbroken.out)


def test_evolution_lowers_the_loss(settings):
    sizes = {"steps": 30, "gradient_accumulation_steps": 1, "batch_size": 8, "eval_every": 30}
    result = train(settings(optimizer="es", lr=5e-2, method_settings={"r": 1}, **sizes))
    assert result.after.loss < result.before.loss - 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; choose one of adamw, es, mezo"),
        ({"es_pairs": 4}, "es_pairs is not for optimizer adamw; leave it out, or choose es or mezo"),
        ({"optimizer": "es", "es_pairs": 0}, "es_pairs must be at least 1"),
        ({"optimizer": "es", "es_sigma": 0.0}, "es_sigma must be above 0"),
        ({"optimizer": "es", "gradient_checkpointing": True}, "has no backward pass; leave out gradient_checkpointing"),
        (
            {"optimizer": "es", "method": "qpa", "backend_settings": {"shots": 100}},
            "optimizer es is for exact circuits; leave out shots",
        ),
        (
            {"optimizer": "es", "method_settings": {"lora_dropout": 0.1}},
            "compares losses without dropout, and lora_dropout is 0.1; leave it out",
        ),
    ],
)
def test_unsupported_settings_are_refused(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes).check()


def test_method_with_many_parameters_is_refused_before_a_file_is_written(settings, monkeypatch):
    monkeypatch.setattr("qpeft.training.settings._MOST_ESTIMATED", 1000)
    with pytest.raises(
        ConfigError, match=r"method full trains [\d,]+ parameters, and optimizer es takes at most 1,000"
    ):
        train(settings(optimizer="es", method="full"))
    assert not Path(settings().out).exists()


def test_run_records_its_optimizer(settings):
    out = train(settings(optimizer="es", es_pairs=1, steps=1, method="quantum_peft", method_settings=FRAMED)).out
    recorded = json.loads((out / "config.json").read_text())["settings"]
    assert (recorded["optimizer"], recorded["es_pairs"], recorded["es_sigma"]) == ("es", 1, None)
