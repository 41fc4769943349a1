"""Tuning of the launch table, where there is no GPU."""

import pytest
import torch

from tools.tune_launches import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what a machine without a GPU says")
def test_without_a_gpu_it_says_why() -> None:
    with pytest.raises(
        SystemExit, match=r"^tune-launches: the kernels run in plain torch here \(no NVIDIA GPU"
    ):
        main()
