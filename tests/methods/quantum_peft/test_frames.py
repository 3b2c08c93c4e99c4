"""Gradient frames against the full SVD, and the random control."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpeft.core.seeded_init import SeededInit
from qpeft.methods.quantum_peft import frames
from qpeft.methods.quantum_peft.frames import (
    core_frame,
    frame_rank_for,
    leading_frame,
    random_frame,
    singular_frame,
)


def gradient(d_out, d_in, decay=0.7, seed=0):
    """A matrix with singular values decay^k, as gradients of the loss have."""
    generator = torch.Generator().manual_seed(seed)
    k = min(d_out, d_in)
    left = torch.linalg.qr(torch.randn(d_out, k, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(d_in, k, generator=generator))[0]
    return (left * decay ** torch.arange(k)) @ right.mT


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(48, 32, 8), (20, 70, 4), (16, 16, 16), (3, 40, 2), (1, 5, 1)])
@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_frame_equals_the_full_svd(d_out, d_in, rank, size):
    G = gradient(d_out, d_in) * size
    left, right = leading_frame(G, rank)
    u, s, vt = torch.linalg.svd(-G.double(), full_matrices=False)
    assert (left.shape, right.shape) == ((d_out, rank), (d_in, rank))
    for frame, exact in ((left, u[:, :rank]), (right, vt[:rank].mT)):
        overlap = (exact.mT @ frame.double()).square().sum() / rank
        assert overlap > 0.995
        assert torch.allclose(frame.mT @ frame, torch.eye(rank), atol=2e-3)
    captured = (left.double().mT @ (-G.double() / size) @ right.double()).square().sum()
    assert captured > 0.999 * (s[:rank] / size).square().sum()
    # minus the gradient: with positive weights on the pairs the loss falls
    assert (torch.einsum("ok,oi,ik->k", left, G, right) < 0).all()


def test_frame_of_a_flat_spectrum():
    G = torch.randn(200, 120, generator=torch.Generator().manual_seed(1))
    left, right = leading_frame(G, 16)
    s = torch.linalg.svdvals(G)
    assert (left.mT @ G @ right).square().sum() > 0.8 * s[:16].square().sum()


@pytest.mark.parametrize("exact", [1024, 16])
def test_singular_frame_equals_the_full_svd(monkeypatch, exact):
    monkeypatch.setattr(frames, "_EXACT", exact)
    W = gradient(40, 30, decay=0.8)
    left, right = singular_frame(W, 6)
    u, s, vt = torch.linalg.svd(W.double())
    assert torch.allclose((left * u[:, :6]).sum(0).abs(), torch.ones(6, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(core_frame(W, 6)[0] @ right.mT, (u[:, :6] * s[:6]).float() @ vt[:6].float(), atol=1e-3)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    assert all(torch.equal(x, x.half().float()) for x in (left, right))


def test_sign_rule_and_float16():
    left, right = leading_frame(gradient(40, 30), 8)
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    for frame in (left, right):
        assert frame.dtype == torch.float32
        assert torch.equal(frame, frame.half().float())


def test_frame_is_bit_equal_for_every_dtype():
    G = gradient(24, 36).bfloat16()
    frames = [leading_frame(given_, 4) for given_ in (G, G.float(), G.double(), G.float())]
    assert all(torch.equal(pair[0], frames[0][0]) and torch.equal(pair[1], frames[0][1]) for pair in frames)
    assert torch.equal(G, gradient(24, 36).bfloat16())


def test_frame_of_a_zero_gradient():
    left, right = leading_frame(torch.zeros(6, 9), 4)
    for frame in (left, right):
        assert torch.allclose(frame.mT @ frame, torch.eye(4), atol=2e-3)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_frame_rank(width, frame_rank):
    rank = frame_rank_for(width, frame_rank)
    limit = min(width, frame_rank)
    assert rank & (rank - 1) == 0
    assert rank <= limit < 2 * rank


def test_random_frames():
    frame = random_frame("layer.0.left", 30, 8, SeededInit(3))
    assert torch.allclose(frame.mT @ frame, torch.eye(8), atol=1e-6)
    assert torch.equal(frame, random_frame("layer.0.left", 30, 8, SeededInit(3)))
    others = [random_frame("layer.1.left", 30, 8, SeededInit(3)), random_frame("layer.0.left", 30, 8, SeededInit(4))]
    assert all((frame.mT @ other).square().sum() / 8 < 0.6 for other in others)
    # the frame of a normal matrix, with the triangle's diagonal positive
    drawn = SeededInit(3).normal("layer.0.left", (30, 8))
    assert ((frame.mT @ drawn).diagonal() > 0).all()
