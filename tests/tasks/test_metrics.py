"""Metrics compared with figures worked out by hand and with the official evaluations."""

from __future__ import annotations

import doctest
import importlib
import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.inputs.locations import box_to_text, text_to_box
from pidep.tasks.metrics import METRICS, score, score_texts
from pidep.tasks.metrics.boxes import iou
from pidep.tasks.metrics.captions import tokens
from pidep.tasks.metrics.vqa import normalised, vqa_score


def test_accuracy() -> None:
    assert score("accuracy", [0, 1, 1, 0], [0, 1, 0, 0]) == 0.75


def test_macro_f1_weighs_labels_alike() -> None:
    # label 0: precision 3/4, recall 1, F1 6/7; label 1 is never predicted: F1 0
    assert score("macro_f1", [0, 0, 0, 1], [0, 0, 0, 0]) == pytest.approx(3 / 7)


def test_a_text_is_right_when_it_is_one_of_its_references() -> None:
    assert score_texts(
        "accuracy", [("yes",), ("two  dogs", "2 dogs"), ("no",)], [" yes", "two dogs", "No"]
    ) == pytest.approx(2 / 3)


# RefCOCO: boxes as location tokens


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), 1.0),
        ((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0), 1 / 3),
        ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), 0.0),  # one corner in common
        ((0.1, 0.1, 0.2, 0.2), (0.8, 0.8, 0.9, 0.9), 0.0),  # both sides are negative: no area
        ((0.2, 0.2, 0.2, 0.8), (0.0, 0.0, 1.0, 1.0), 0.0),  # a line has no area
    ],
)
def test_intersection_over_union(
    left: tuple[float, ...], right: tuple[float, ...], expected: float
) -> None:
    assert iou(left, right) == pytest.approx(expected)  # type: ignore[arg-type]
    assert iou(right, left) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [998, 102, 250])
def test_acc_at_half_counts_a_half_as_right(side: int) -> None:
    reference, half, less = (
        f"<loc_0><loc_0><loc_{side}><loc_{bottom}>" for bottom in (side, side // 2, side // 2 - 1)
    )
    assert iou(text_to_box(reference), text_to_box(half)) == pytest.approx(0.5)
    assert score_texts("acc@0.5", [(reference,)], [half]) == 1.0
    assert score_texts("acc@0.5", [(reference,)], [less]) == 0.0


def test_text_without_a_box_is_wrong_and_the_first_box_counts() -> None:
    right, wrong = box_to_text((0.0, 0.0, 1.0, 1.0)), box_to_text((0.0, 0.0, 0.1, 0.1))
    texts = [
        "",
        "the dog",
        "<loc_1><loc_2>",
        "<loc_0><loc_0><loc_999><loc_1000>",
        "dog" + right,
        right + wrong,
        wrong + right,
    ]
    assert score_texts("acc@0.5", [(right,)] * 7, texts) == pytest.approx(2 / 7)
    assert score_texts("acc@0.5", [(wrong, right)], [right]) == 1.0


def test_a_reference_that_is_no_box_is_the_tasks_mistake() -> None:
    with pytest.raises(
        TaskError, match=r"reference: expected four locations such as .*, found '?the dog"
    ):
        score_texts("acc@0.5", [("the dog",)], [box_to_text((0, 0, 1, 1))])


# VQA v2: cases worked through the official evaluation by hand


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        ("two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("yes, it is", "yes it is"),  # a blank beside the mark: the mark is removed
        ("black,white", "black white"),  # no blank beside the mark: it becomes a blank
        ("black-and-white", "black and white"),
        ("1,000", "1000"),  # a comma in a number
        (
            "1,000 black-and-white",
            "1000 blackandwhite",
        ),  # with such a comma every mark is removed, as in the official code
        ("3.5", "3.5"),
        ("5.", "5"),
        ("u.s.", "us"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("don't", "don't"),  # the apostrophe is no such mark
        ("well", "well"),
        ("shes", "shes"),
    ],
)
def test_answers_are_normalised_as_officially(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # nine times of ten, the one who said it is among those asked: 9/10 · 1/3
        (2, 0.6),  # 8/10 · 2/3 + 2/10 · 1/3
        (3, 0.9),  # 7/10 · 1 + 3/10 · 2/3
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_the_vqa_score_leaves_one_of_ten_out(said: int, expected: float) -> None:
    people = ["two"] * said + [f"other {number}" for number in range(10 - said)]
    assert score_texts("vqa_score", [people], ["2" if said < 10 else "two"]) == pytest.approx(
        expected
    )


def test_where_all_people_say_the_same_nothing_is_normalised() -> None:
    assert vqa_score([["two"] * 10], ["2"]) == 0.0
    assert vqa_score([["two"] * 10], [" two\n"]) == 1.0


# Captions: figures of pycocoevalcap 1.2 (its tokenizer, Bleu(4), Cider) on the same texts

REFERENCES = [
    [
        "A man rides a horse on the beach.",
        "The man is riding his horse by the sea.",
        "A person on a brown horse near water",
    ],
    [
        "Two dogs are playing with a ball in the grass",
        "A couple of dogs play in a green field.",
        "Dogs chasing the red ball!",
    ],
    ["A red bus stops in front of the man's house.", "The city bus isn't moving."],
    [
        "A plate with pizza, salad and a glass of wine",
        "Pizza on a white plate; a glass of red wine beside it.",
    ],
    [
        "People walk down a busy street at night.",
        "A crowded street with neon lights at night-time.",
    ],
]
CAPTIONS = [
    "A man riding a horse on the beach",
    "two dogs play with a red ball in the grass",
    "a bus in front of a house",
    "a pizza on a plate",
    "a dog on a bench",
]
OFFICIAL = {
    "bleu4": 0.30942018784636327,
    "cider": 1.5256077481546568,
    "meteor": 0.29203227422568756,
}


@pytest.mark.parametrize("metric", ["bleu4", "cider"])
def test_captions_are_scored_as_in_cocos_evaluation(metric: str) -> None:
    assert score_texts(metric, REFERENCES, CAPTIONS) == pytest.approx(OFFICIAL[metric], abs=1e-12)


def test_meteor_by_its_java_program() -> None:
    pytest.importorskip("pycocoevalcap")
    assert score_texts("meteor", REFERENCES, CAPTIONS) == pytest.approx(
        OFFICIAL["meteor"], abs=1e-9
    )


@pytest.mark.parametrize("metric", ["bleu4", "cider"])
def test_a_reference_scores_best_and_words_of_its_own_nothing(metric: str) -> None:
    copied = [row[0] for row in REFERENCES]
    strange = ["colourless ideas sleep furiously"] * len(REFERENCES)
    assert score_texts(metric, [[text] for text in copied], copied) == pytest.approx(
        {"bleu4": 1.0, "cider": 10.0}[metric]
    )
    assert score_texts(metric, REFERENCES, strange) < 1e-3
    assert score_texts(metric, REFERENCES, [""] * len(REFERENCES)) == pytest.approx(0.0, abs=1e-9)


def test_bleu_punishes_what_is_too_short() -> None:
    text = "a man rides a horse on the beach today"
    assert score_texts("bleu4", [[text]], [" ".join(text.split()[:6])]) == pytest.approx(
        math.exp(1 - 9 / 6), abs=1e-6
    )


@given(seed=st.integers(0, 1000))
def test_the_order_of_captions_and_references_does_not_matter(seed: int) -> None:
    shuffler = random.Random(seed)
    order = list(range(len(CAPTIONS)))
    shuffler.shuffle(order)
    turned = [shuffler.sample(REFERENCES[row], len(REFERENCES[row])) for row in order]
    for metric in ("bleu4", "cider"):
        assert score_texts(metric, turned, [CAPTIONS[row] for row in order]) == pytest.approx(
            OFFICIAL[metric], abs=1e-12
        )


def test_tokens_are_the_penn_treebanks() -> None:
    text = "Don't let the man's U.S.-made 3,500-pound car; it's (was) 'red' -- isn't it?"
    found = tokens(text)
    assert found[:4] == ["do", "n't", "let", "the"]
    assert found[4:6] == ["man", "'s"]
    assert found[-7:] == ["it", "'s", "was", "red", "is", "n't", "it"]


# Mistakes


def test_mistakes_are_one_line() -> None:
    with pytest.raises(
        TaskError,
        match=(
            r"metric 'rouge': expected one for texts, accuracy, vqa_score, bleu4, cider, meteor, "
            r"spice, acc@0\.5$"
        ),
    ):
        score_texts("rouge", [("a",)], ["a"])
    with pytest.raises(
        TaskError,
        match=r"metric 'cider': expected as many texts as references and at least one, found 1, 2",
    ):
        score_texts("cider", [("a",), ("b",)], ["a"])
    with pytest.raises(TaskError, match=r"found 0, 0"):
        score_texts("cider", [], [])
    with pytest.raises(TaskError, match=r"metric 'bleu4': text 2 has no reference"):
        score_texts("bleu4", [("a",), ()], ["a", "b"])


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_a_metric_without_its_library_says_what_to_install(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pidep.tasks.metrics.captions_java")
    monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/java")
    for name in ("pycocoevalcap", f"pycocoevalcap.{metric}.{metric}"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        TaskError,
        match=(
            rf"metric '{metric}': .*pycocoevalcap.*; pip install pycocoevalcap, or use bleu4 or "
            r"cider"
        ),
    ):
        score_texts(metric, [("a dog",)], ["a dog"])
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(
        TaskError,
        match=(
            rf"metric '{metric}': needs Java, and no 'java' is on the path; install a Java runtime"
        ),
    ):
        score_texts(metric, [("a dog",)], ["a dog"])


@pytest.mark.parametrize("name", ["", ".captions", ".vqa"])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"pidep.tasks.metrics{name}")) == (0, 1)


def test_every_metric_of_texts_is_known() -> None:
    assert {*METRICS["texts"], *METRICS["boxes"]} - {"accuracy"} == {
        "acc@0.5",
        "vqa_score",
        "bleu4",
        "cider",
        "meteor",
        "spice",
    }
