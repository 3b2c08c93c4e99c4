"""QAA in two processes over gloo, against one process with the full batch."""

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]


def test_gradients_of_qaa_equal_those_of_one_process(launch, tmp_path):
    launch(TORCHRUN, "qaa_ddp.py", tmp_path)
    for share in (False, True):
        first, second = (load_file(tmp_path / f"{share}.{rank}.safetensors") for rank in (0, 1))
        names = [name.removeprefix("found.") for name in first if name.startswith("found.")]
        assert len([name for name in names if name.endswith("tau")]) == (1 if share else 4)
        for name in names:
            found, expected = first[f"found.{name}"], first[f"expected.{name}"]
            assert expected.any()
            assert torch.equal(found, second[f"found.{name}"])
            torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4, msg=name)
