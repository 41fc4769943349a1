"""An encoder-decoder's bank behind a real Triton Server: scores, texts, candidates, a swap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.deployment.release import release_bank
from pidep.errors import ServingError
from pidep.experts.folder import write_expert
from pidep.export import load_recipe
from pidep.inputs.decoding import Decoding
from pidep.serving import Client, Request
from tests.backbones.tiny_models import loaded
from tests.cli.run import pidep as run
from tests.export.sequences import TEXTS, free_source, labelled_source, noisy_expert
from tests.serving.served import serving

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_a_served_encoder_decoder_scores_generates_and_swaps(tmp_path: Path) -> None:
    backbone = loaded("T5")
    colours = noisy_expert(backbone, "lora", name="colours")
    answers = noisy_expert(backbone, "lora", name="answers", seed=3, free=True)
    sources = [labelled_source(colours), free_source(answers)]
    release_bank(sources, tmp_path / "model_repo", load_recipe("onnx-cpu"), keep_rows=True)
    with torch.no_grad(), attached(backbone.model, Mixture.of([colours])):
        scores = backbone.score(TEXTS, list(colours.label_texts), max_length=16).softmax(1)
        chosen = backbone.score(TEXTS, ["one", "two"], max_length=16).softmax(1)
    with attached(backbone.model, Mixture.of([answers])):
        greedy = backbone.generate(TEXTS, max_length=16, max_new_tokens=6)
        beams = backbone.generate(TEXTS, max_length=16, mode="beam", max_new_tokens=4)
    with serving(tmp_path / "model_repo") as served, Client(served.url) as client:
        found = client.infer([Request(text, "colours") for text in TEXTS])
        np.testing.assert_allclose([list(one.scores.values()) for one in found], scores, atol=1e-5)
        rows = [Request(text, "colours", candidates=["one", "two"]) for text in TEXTS]
        found = client.infer(rows)
        np.testing.assert_allclose([list(one.scores.values()) for one in found], chosen, atol=1e-5)
        found = client.infer([Request(text, "answers") for text in TEXTS])
        assert [one.label for one in found] == greedy
        wide = Decoding("beam", max_answer_length=4)
        found = client.infer([Request(text, "answers", decoding=wide) for text in TEXTS])
        assert [one.label for one in found] == beams
        with pytest.raises(ServingError, match="row 1: mode 'score' needs candidates"):
            client.infer([Request("a dog", "answers", decoding=Decoding("score"))])
        verified = run("verify", "model_repo/pidep_bank", "--url", served.url, cwd=tmp_path)
        assert (verified.code, verified.err) == (0, "")
        new = noisy_expert(backbone, "lora", name="colours", seed=11)
        write_expert(new, tmp_path / "new")
        done = run("swap", "colours", "new", "--url", served.url, cwd=tmp_path)
        assert done.code == 0, done.err
        assert client.infer([Request("a dog", "colours")])[0].digest == new.digest
