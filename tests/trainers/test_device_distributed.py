"""A device in distributed training: two processes over gloo, one answer for both."""

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]


def test_ranks_use_the_answers_of_the_first_rank(launch, tmp_path):
    launch(TORCHRUN, "device_ddp.py", tmp_path)  # it also checks that a failure ends both processes with an error
    for name in ("frequencies", "trained"):
        first, second = (load_file(tmp_path / f"{name}.{rank}.safetensors") for rank in (0, 1))
        jobs = [found.pop("jobs", None) for found in (first, second)]
        assert jobs in ([2, 0], [None, None])
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(value.any() for value in first.values())
    frequencies = load_file(tmp_path / "frequencies.0.safetensors")
    assert not torch.equal(frequencies["first"], frequencies["second"])  # the device has no seed
