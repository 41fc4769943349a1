import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import ExpertError
from pidep.experts.kinds.lora_truncation import truncate


def lora(seed: int, *, rank: int, inputs: int = 9, outputs: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "lora_A": rng.normal(size=(rank, inputs)).astype(np.float32),
        "lora_B": rng.normal(size=(outputs, rank)).astype(np.float32),
    }


def update(tensors: dict[str, np.ndarray], scaling: float = 1.0) -> np.ndarray:
    return scaling * tensors["lora_B"].astype(np.float64) @ tensors["lora_A"].astype(np.float64)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 8), st.floats(0.25, 4))
def test_is_the_best_update_of_that_rank_and_says_how_far_off(
    seed: int, rank: int, kept: int, scaling: float
) -> None:
    whole = lora(seed, rank=rank)
    found = truncate({"q": whole}, scaling=scaling, rank=kept)
    want = update(whole, scaling)
    singular = np.linalg.svd(want, compute_uv=False)
    error = np.linalg.norm(want - update(found.sites["q"])) / np.linalg.norm(want)
    assert error == pytest.approx(found.errors["q"], abs=1e-5)
    assert error == pytest.approx(
        np.sqrt((singular[kept:] ** 2).sum() / (singular**2).sum()), abs=1e-5
    )
    assert found.sites["q"]["lora_A"].shape == (kept, 9)


def test_a_rank_that_is_enough_loses_nothing() -> None:
    assert truncate({"q": lora(0, rank=3)}, scaling=2.0, rank=3).worst[1] < 1e-7
    assert truncate(
        {"q": {name: 0 * value for name, value in lora(0, rank=3).items()}}, scaling=1.0, rank=1
    ).worst == ("q", 0.0)


def test_too_much_loss_is_refused_with_the_rank_that_would_do() -> None:
    sites = {"q": lora(1, rank=6), "v": lora(2, rank=2)}
    with pytest.raises(
        ExpertError, match=r"at rank 1 the error of [qv] is 0\.\d+, allowed 0\.01; use `rank=6`"
    ):
        truncate(sites, scaling=1.0, rank=1, max_error=0.01)
    assert truncate(sites, scaling=1.0, rank=6, max_error=0.01).worst[1] < 1e-6
