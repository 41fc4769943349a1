"""An int8 bank without one of its experts, and that expert's model in fp32, behind one server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pidep.backbones.load import load_backbone
from pidep.deployment import release_bank
from pidep.errors import ServingError
from pidep.export import Source, load_recipe
from pidep.serving import Client, Request
from tests.cli.run import pidep as run
from tests.conftest import save_tiny
from tests.deployment.test_fallback import recipe, source
from tests.export.examples import ROWS, torch_scores
from tests.serving.served import serving

pytestmark = [pytest.mark.server, pytest.mark.slow]


def scores(client: Client, name: str) -> np.ndarray:
    found = client.infer([Request(text, name) for text in ROWS.rows])
    return np.array([list(one.scores.values()) for one in found])


def test_each_model_answers_for_its_own_expert(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path / "backbone", num_layers=1)))
    quiet, loud = source(backbone, "quiet"), source(backbone, "loud", loud=True)
    repo, fp32 = tmp_path / "model_repo", load_recipe("onnx-cpu")
    release_bank([quiet, loud], repo, recipe(), fallback=fp32, keep_rows=True)

    def expected(one: Source) -> np.ndarray:
        return torch_scores(backbone, one.expert, list(ROWS.rows))

    with serving(repo) as served:
        with Client(served.url) as bank, Client(served.url, model="loud") as alone:
            np.testing.assert_allclose(scores(bank, "quiet"), expected(quiet), atol=0.02)
            # In int8, this expert's scores are further from PyTorch's.
            np.testing.assert_allclose(scores(alone, "loud"), expected(loud), atol=1e-3)
            assert alone.infer([Request("a film", "loud")])[0].digest == loud.expert.digest
            with pytest.raises(ServingError, match=r"refused it in int8 .* ask model 'loud'"):
                bank.infer([Request("a film", "loud")])
        for entry in ("pidep_bank", "loud"):
            done = run("verify", f"model_repo/{entry}", "--url", served.url, cwd=tmp_path)
            assert (done.code, done.err) == (0, "")
