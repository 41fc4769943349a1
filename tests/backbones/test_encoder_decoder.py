"""Encoder-decoders score as transformers' logits say and generate the argmax, with and without
experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached
from pidep.adapters.places import find_sites, fresh
from pidep.backbones.encoder_decoder import EncoderDecoder
from pidep.errors import BackboneError, ImageError, UsageError
from pidep.inputs.row import Input, Row, as_row
from tests.adapters.small_experts import make, mixture_of, trace_of
from tests.backbones.tiny_models import CANDIDATES, CLASSES, IMAGES, TEXTS, loaded, picture, rows_of

LENGTH = 16
TARGETS = ["the cat", "red", "two", "no not one"]


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def backbone(name: str) -> Iterator[EncoderDecoder]:
    found = loaded(name)
    before = trace_of(found.model)
    yield found
    assert trace_of(found.model) == before


def expert_of(backbone: EncoderDecoder, kind: str, *, seed: int = 0) -> Mixture:
    """An expert that clearly changes the output."""
    return mixture_of(make(backbone.model, kind, seed=seed), kind=kind)


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def theirs(backbone: EncoderDecoder, name: str, row: Input, ids: list[int]) -> Tensor:
    """`[T, V]` logits of transformers' own `forward` for one row, after the given decoder
    tokens.
    """
    row, model = as_row(row), backbone.model
    pixels = (
        {}
        if row.image is None
        else {"pixel_values": torch.from_numpy(backbone.preprocess.one(row.image))[None]}
    )  # type: ignore[union-attr]
    words = backbone.tokenize([row.text], max_length=LENGTH)[0][0].tolist()
    if name == "Florence-2" and pixels:
        words = [4] * 5 + words  # 2 × 2 patches and their mean
    source, decoded = torch.tensor([words]), torch.tensor([ids])
    if name == "BLIP captions":
        return model(**pixels, input_ids=decoded, attention_mask=torch.ones_like(decoded)).logits[0]
    if name == "BLIP answers":  # its forward returns no logits, so its steps are repeated here
        seen = model.vision_model(**pixels).last_hidden_state
        question = model.text_encoder(
            input_ids=source, encoder_hidden_states=seen
        ).last_hidden_state
        return model.text_decoder(input_ids=decoded, encoder_hidden_states=question).logits[0]
    return model(input_ids=source, **pixels, decoder_input_ids=decoded).logits[0]


def beginning(backbone: EncoderDecoder, name: str, row: Input) -> list[int]:
    """The tokens that the decoder begins with: T5's padding, BART's </s>, BLIP's <s> and the
    prompt.
    """
    if name == "BLIP captions":
        return [2, *backbone.tokenize([as_row(row).text], max_length=LENGTH)[0][0].tolist()[1:-1]]
    return {"T5": [1], "BART": [3], "Florence-2": [3], "BLIP answers": [2]}[name]


def tokens(backbone: EncoderDecoder, name: str, text: str) -> list[int]:
    found: list[int] = backbone.tokenize([text], max_length=99)[0][0].tolist()
    return found[1:] if name.startswith("BLIP") else found


@torch.no_grad()
def test_a_score_is_the_sum_of_token_log_probabilities(backbone: EncoderDecoder, name: str) -> None:
    rows = rows_of(name)
    scores = backbone.score(rows, CANDIDATES, max_length=LENGTH)
    by_tokens = backbone.score(rows, CANDIDATES, max_length=LENGTH, normalise="tokens")
    for row, given in enumerate(rows):
        start = beginning(backbone, name, given)
        for place, text in enumerate(CANDIDATES):
            wanted = tokens(backbone, name, text)
            logp = log_softmax(theirs(backbone, name, given, [*start, *wanted[:-1]]), -1)[
                len(start) - 1 :
            ]
            by_hand = sum(float(logp[at, token]) for at, token in enumerate(wanted))
            assert float(scores[row, place]) == pytest.approx(by_hand, abs=2e-4)
            assert float(by_tokens[row, place]) == pytest.approx(by_hand / len(wanted), abs=1e-4)


@torch.no_grad()
def test_a_loss_is_minus_the_score_of_the_target(backbone: EncoderDecoder, name: str) -> None:
    rows = rows_of(name)
    losses = backbone.loss(rows, TARGETS, max_length=LENGTH, max_target_length=8)
    assert_close(losses, -backbone.score(rows, TARGETS, max_length=LENGTH).diagonal())
    cut = backbone.loss(rows, ["red " * 9] * 4, max_length=LENGTH, max_target_length=4)
    kept = 3 - (name in ("BART", "Florence-2"))  # with the opening and the closing token
    assert_close(
        cut, backbone.loss(rows, ["red " * kept] * 4, max_length=LENGTH, max_target_length=8)
    )


@pytest.mark.parametrize("kind", [None, "lora", "prefix", "prompt"])
@torch.no_grad()
def test_a_row_is_scored_in_a_batch_as_alone(
    backbone: EncoderDecoder, name: str, kind: str | None
) -> None:
    rows = rows_of(name)
    with attached(backbone.model, expert_of(backbone, kind) if kind else None):
        together = backbone.score(rows, CANDIDATES, max_length=LENGTH)
        assert_close(
            together,
            torch.cat([backbone.score([row], CANDIDATES, max_length=LENGTH) for row in rows]),
        )
        alone = [backbone.score([rows[1]], [text], max_length=LENGTH) for text in CANDIDATES]
        assert_close(together[1:2], torch.cat(alone, 1))
        for options in (
            {},
            {"mode": "beam", "num_beams": 3},
            {"mode": "constrained", "candidates": CANDIDATES},
        ):
            answers = backbone.generate(rows, max_length=LENGTH, max_new_tokens=4, **options)
            assert answers == backbone.generate(
                rows, max_length=LENGTH, max_new_tokens=4, batch_size=1, **options
            )


@pytest.mark.parametrize("kind", [None, "lora", "prefix", "prompt"])
@torch.no_grad()
def test_greedy_is_the_argmax_step_by_step_without_a_cache(
    backbone: EncoderDecoder, name: str, kind: str | None
) -> None:
    rows = rows_of(name)
    with attached(backbone.model, expert_of(backbone, kind) if kind else None):
        answers = backbone.generate(rows, max_length=LENGTH, max_new_tokens=5)
        for row, answer in zip(rows, answers, strict=True):
            ids = beginning(backbone, name, row)
            start = len(ids)
            for _ in range(5):
                ids.append(int(theirs(backbone, name, row, ids)[-1].argmax()))
                if ids[-1] == 3:
                    break
            assert answer == backbone.tokenize.text(
                [token for token in ids[start:] if token not in (1, 2, 3)]
            )


@pytest.mark.parametrize("kind", [None, "lora", "prefix", "prompt"])
@torch.no_grad()
def test_constrained_is_the_likeliest_candidate(
    backbone: EncoderDecoder, name: str, kind: str | None
) -> None:
    rows = rows_of(name)
    # each is the beginning of another
    choices = [*CANDIDATES, "the", "the big", "red red red red red"]
    with attached(backbone.model, expert_of(backbone, kind) if kind else None):
        best = backbone.score(rows, choices, max_length=LENGTH).argmax(1)
        assert backbone.generate(
            rows, max_length=LENGTH, mode="constrained", candidates=choices
        ) == [choices[place] for place in best]
        for beams in (1, 2):
            answers = backbone.generate(
                rows, max_length=LENGTH, mode="constrained", candidates=choices, num_beams=beams
            )
            assert set(answers) <= set(choices)


@torch.no_grad()
def test_candidates_of_a_row(backbone: EncoderDecoder, name: str) -> None:
    rows = rows_of(name)
    own = [["yes", "no"], ["red"], [Row("one"), "the big cat", "two"], CANDIDATES[:2]]
    scores = backbone.score(rows, own, max_length=LENGTH, normalise="tokens")
    assert scores.shape == (4, 3)
    assert torch.isneginf(scores).tolist() == [
        [False, False, True],
        [False, True, True],
        [False] * 3,
        [False, False, True],
    ]
    every = backbone.score(
        rows,
        ["yes", "no", "red", "one", "the big cat", "two"],
        max_length=LENGTH,
        normalise="tokens",
    )
    assert_close(scores[0, :2], every[0, :2])
    assert_close(scores[2], every[2, 3:])
    answers = backbone.generate(rows, max_length=LENGTH, mode="constrained", candidates=own)
    summed = backbone.score(rows, own, max_length=LENGTH)
    assert answers == [
        as_row(own[row][int(place)]).text for row, place in enumerate(summed.argmax(1))
    ]


def test_many_candidates_take_several_calls_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, rows = loaded("T5"), rows_of("T5")
    expert = expert_of(backbone, "prefix")
    with attached(backbone.model, expert), torch.no_grad():
        at_once = backbone.score(rows, CANDIDATES, max_length=LENGTH)
        monkeypatch.setattr("pidep.backbones.encoder_decoder.DECODED_TOGETHER", 8)
        assert_close(backbone.score(rows, CANDIDATES, max_length=LENGTH), at_once)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_it_learns_target_texts(backbone: EncoderDecoder, name: str, kind: str) -> None:
    rows = rows_of(name)
    sites = find_sites(backbone.model, kind=kind)
    mixture = mixture_of(fresh(backbone.model, sites, kind=kind, rank=8), kind=kind)
    optimizer = torch.optim.Adam(mixture.expert_parameters(), lr=1e-2 if kind == "lora" else 1e-1)
    losses: list[float] = []
    answers: list[str] = []
    with backbone.cached_below(sites), attached(backbone.model, mixture):
        for step in range(80):
            loss = backbone.loss(rows, TARGETS, max_length=LENGTH, max_target_length=8).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if step % 20 == 19:
                answers = backbone.generate(rows, max_length=LENGTH, max_new_tokens=6)
                if answers == TARGETS:
                    break
    assert losses[-1] < losses[0] - 2
    assert kind != "lora" or answers == TARGETS


def test_it_learns_to_choose(backbone: EncoderDecoder, name: str) -> None:
    rows, labels, words = rows_of(name), torch.tensor([0, 1, 2, 3]), ["yes", "no", "red", "one"]
    mixture = mixture_of(
        fresh(backbone.model, find_sites(backbone.model), kind="lora", rank=4), kind="lora"
    )
    optimizer = torch.optim.Adam(mixture.expert_parameters(), lr=1e-2)
    with attached(backbone.model, mixture):
        for _ in range(40):
            scores = backbone.score(rows, words, max_length=LENGTH)
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if torch.equal(scores.argmax(1), labels):
                break
        assert torch.equal(backbone.score(rows, words, max_length=LENGTH).argmax(1), labels)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_single_rows(backbone: EncoderDecoder, name: str, kind: str) -> None:
    """The gradients of a Fisher: each row has its own tensors, through encoder and candidates."""
    rows, mixture = rows_of(name), expert_of(backbone, kind)
    leaves: dict[str, Tensor] = {}
    for site_name, site in mixture.by_name():
        site.rows = {
            key: torch.from_numpy(value).expand(4, *value.shape).requires_grad_()
            for key, value in site.part(0).items()
        }
        leaves |= {f"{site_name}.{key}": value for key, value in site.rows.items()}
    if name == "Florence-2":
        rows = [
            as_row(row) if as_row(row).image is not None else Row(as_row(row).text, picture(9))
            for row in rows
        ]
    with attached(backbone.model, mixture):
        together = torch.autograd.grad(
            backbone.score(rows, CANDIDATES[:3], max_length=LENGTH)[:, 1].sum(),
            list(leaves.values()),
        )
        for row in range(4):
            for _, site in mixture.by_name():
                site.rows = {
                    key: value.detach()[:1].requires_grad_() for key, value in site.rows.items()
                }  # type: ignore[union-attr]
            alone = [value for _, site in mixture.by_name() for value in site.rows.values()]  # type: ignore[union-attr]
            found = torch.autograd.grad(
                backbone.score([rows[row]], CANDIDATES[1:2], max_length=LENGTH).sum(), alone
            )
            for several, one in zip(together, found, strict=True):
                assert float((several[row] - one[0]).norm()) <= 1e-3 * float(one.norm()) + 1e-4


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_passes_the_vision_tower_once(
    backbone: EncoderDecoder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in rows_of(name) if as_row(row).image is not None]
    calls: list[int] = []
    see = backbone.calls.see
    monkeypatch.setattr(
        backbone.calls, "see", lambda pixels: calls.append(len(pixels)) or see(pixels)
    )
    with torch.no_grad():
        before = backbone.score(rows, CANDIDATES, max_length=LENGTH)
    calls.clear()
    everything = find_sites(backbone.model, kind="lora")
    words = [site for site in everything if "vision" not in site and "projector" not in site]
    with backbone.cached_below(words):
        # first in inference mode, whose tensors cannot be trained on
        backbone.generate(rows[:2], max_length=LENGTH, max_new_tokens=2)
        assert_close(backbone.score(rows, CANDIDATES, max_length=LENGTH), before)
        assert sum(calls) == len(rows)
    with backbone.cached_below(everything), torch.no_grad():
        backbone.score(rows, CANDIDATES, max_length=LENGTH)
        backbone.score(rows, CANDIDATES, max_length=LENGTH)
    assert sum(calls) == 3 * len(rows)


def test_settings_that_came_with_the_weights_do_not_count() -> None:
    import transformers

    backbone = loaded("BART")
    assert backbone.model.generation_config.no_repeat_ngram_size in (None, 0)
    model = transformers.BartForConditionalGeneration(backbone.model.config)
    model.load_state_dict(backbone.model.state_dict())
    model.generation_config.update(
        no_repeat_ngram_size=1, num_beams=3, forced_bos_token_id=20, max_length=3
    )
    again = EncoderDecoder("again", model.eval(), backbone.tokenizer_json, "sha256:0")
    rows = rows_of("BART")
    assert again.generate(rows, max_length=LENGTH, max_new_tokens=6) == backbone.generate(
        rows, max_length=LENGTH, max_new_tokens=6
    )


WRONG: list[tuple[str, Any, str]] = [
    (
        "T5",
        lambda b: b.score(["a", Row("a", picture(0))], ["yes"], max_length=8),
        "row 2: has an image, and backbone .* reads text only",
    ),
    (
        "T5",
        lambda b: b.score(["a", " "], ["yes"], max_length=8),
        "row 2: expected a text, found none; remove the row",
    ),
    (
        "Florence-2",
        lambda b: b.score([Row("")], ["yes"], max_length=8),
        "row 1: expected a text or an image, found none; remove the row",
    ),
    (
        "BLIP answers",
        lambda b: b.score(["red"], ["yes"], max_length=8),
        "row 1: has no image, and backbone .* needs one in every row",
    ),
    (
        "BLIP captions",
        lambda b: b.generate([Row("a", picture(0)), "red"], max_length=8),
        "row 2: has no image",
    ),
    (
        "T5",
        lambda b: b.score(["a"], [], max_length=8),
        "candidates: expected texts, or a list of texts for each of 1 rows, found 0 lists",
    ),
    (
        "T5",
        lambda b: b.score(["a", "b"], [["yes"], []], max_length=8),
        "row 2: has no candidates; give at least one",
    ),
    (
        "T5",
        lambda b: b.score(["a"], [[Row("", picture(0))]], max_length=8),
        "row 1: a candidate is an image, and an encoder-decoder scores",
    ),
    (
        "BART",
        lambda b: b.score(["a"], ["red " * 60], max_length=8),
        "candidate 'red .*: has 62 tokens, the decoder has 40 positions; shorten",
    ),
    (
        "BART",
        lambda b: b.loss(["a"], ["red " * 60], max_length=8, max_target_length=99),
        "target texts: 62 tokens, the decoder has 40",
    ),
    (
        "BART",
        lambda b: b.score(["a " * 60], ["yes"], max_length=99),
        r"row 1: 62 tokens, the backbone has 40 positions; cut texts at 40",
    ),
    (
        "Florence-2",
        lambda b: b.score([Row("a " * 60, picture(0))], ["yes"], max_length=99),
        r"row 1: 62 tokens and 5 of an image, .* at 35 \(",
    ),
    (
        "T5",
        lambda b: b.loss(["a", "b"], ["yes"], max_length=8, max_target_length=8),
        "2 rows and 1 target texts; give one target a row",
    ),
    (
        "T5",
        lambda b: b.generate(["a"], max_length=8, mode="sample"),
        "mode 'sample': expected greedy, beam or constrained",
    ),
    (
        "T5",
        lambda b: b.generate(["a"], max_length=8, mode="constrained"),
        "mode 'constrained': needs candidates",
    ),
    (
        "T5",
        lambda b: b.generate(["a"], max_length=8, candidates=["yes"]),
        "mode 'greedy': takes no candidates; use mode 'constrained'",
    ),
    (
        "T5",
        lambda b: b.generate(["a"], max_length=8, num_beams=3),
        "mode 'greedy' has one beam, found num_beams 3; use mode 'beam'",
    ),
    (
        "T5",
        lambda b: b.generate(["a"], max_length=8, max_new_tokens=0),
        "max_new_tokens 0 and num_beams None: expected at least 1",
    ),
]


@pytest.mark.parametrize(("name", "call", "message"), WRONG)
def test_unreadable_rows_are_named(backbone: EncoderDecoder, call: Any, message: str) -> None:
    with pytest.raises((BackboneError, UsageError), match=message):
        call(backbone)


def test_a_damaged_image_is_named_by_its_row_in_the_whole_input() -> None:
    rows = [Row("red", picture(seed)) for seed in range(5)] + [Row("a", b"no image")]
    with pytest.raises(ImageError, match=r"^row 6: "):
        loaded("Florence-2").generate(rows, max_length=8, batch_size=2)


@pytest.mark.parametrize("name", TEXTS)
def test_no_rows(backbone: EncoderDecoder) -> None:
    assert backbone.generate([], max_length=8) == []
