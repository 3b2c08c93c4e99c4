"""The map comparison compares the maps that it names: equal functions where they are equal, orthonormal columns."""

import pytest
import torch


@pytest.fixture
def script(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import orthogonal_maps

    return orthogonal_maps


@pytest.mark.parametrize("lie_rank", [1, 3])
def test_columns_are_orthonormal_and_of_equal_counts(script, lie_rank):
    found = script.maps(16, 3, lie_rank)
    columns = {name: one.columns(one.draw(2, torch.Generator().manual_seed(0)).double()) for name, one in found.items()}
    for name, u in columns.items():
        assert u.shape == (2, 16, 3)
        if name != "Taylor, 3 terms" and name != "Taylor, 6 terms":
            assert torch.allclose(u.mT @ u, torch.eye(3).double().expand(2, 3, 3), atol=1e-6), name
    counts = {name: one.count for name, one in found.items()}
    circuits = {name: counts.pop(name) for name in ("circuit", "circuit, 2 layers")}
    assert set(counts.values()) == {script.count_lie(16, lie_rank)}
    assert abs(circuits["circuit"] - script.count_lie(16, lie_rank)) <= 3  # half of a layer


def test_torch_and_low_rank_forms_are_the_same_function(script):
    found = script.maps(16, 3, 2)
    x = torch.randn(2, found["Cayley"].count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("Cayley", "exponential"):
        assert torch.allclose(found[name].columns(x), found[f"{name}, low rank"].columns(x), atol=1e-12)
    small = x / 10
    assert torch.allclose(found["Taylor, 18 terms"].columns(small), found["exponential"].columns(small), atol=1e-12)


def test_givens_reach_every_frame(script):
    """As many acting parameters as the frames have dimensions: N K - K (K + 1) / 2."""
    one = script.maps(8, 3, 3)["Givens"]
    x = one.draw(1, torch.Generator().manual_seed(0)).double()
    jacobian = torch.autograd.functional.jacobian(one.columns, x).reshape(-1, one.count)
    assert one.count == 8 * 3 - 6
    assert torch.linalg.matrix_rank(jacobian) == one.count
