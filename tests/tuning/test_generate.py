"""Answers of runs, experts and bare encoder-decoders, from the library and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pidep.adapters.mixture import Mixture, attached
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.inputs.row import Row
from pidep.tuning.generate import GeneratedAnswer, generate
from pidep.tuning.settings import GenerateSettings
from tests.adapters.small_experts import make
from tests.backbones.tiny_models import folder_of, loaded, picture, rows_of
from tests.cli.run import Done, assert_refused
from tests.conftest import make_expert
from tests.tuning.text_tasks import answered, labelled

TEXTS = ["the red cat", "is the dog blue"]


def expert_of(name: str, *, labels: tuple[str, ...] = (), texts: tuple[str, ...] = ()) -> Expert:
    backbone = loaded(name)
    sites = make(backbone.model, "lora", seed=0, scale=0.5)
    empty = np.zeros((len(labels), 0), np.float32)
    length = None if labels else 5
    where = str(folder_of(name))
    return Expert(
        "e",
        backbone.digest,
        sites,
        1.5,
        labels,
        texts,
        empty,
        1.0,
        12,
        where,
        max_answer_length=length,
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with free answers: the files that are read."""
    write_expert(expert_of("T5"), tmp_path / "run" / "expert")
    return tmp_path / "run"


def test_a_run_answers_as_its_expert_does(run_folder: Path) -> None:
    backbone = loaded("T5")
    with attached(backbone.model, Mixture.of([expert_of("T5")])):
        expected = backbone.generate(TEXTS, max_length=12, max_new_tokens=5)
    assert generate(str(run_folder), TEXTS) == [GeneratedAnswer(text) for text in expected]
    assert generate(str(run_folder / "expert"), TEXTS, backbone=backbone) == [
        GeneratedAnswer(text) for text in expected
    ]
    bare = backbone.generate(TEXTS, max_length=12, max_new_tokens=5)
    assert (
        [
            answer.text
            for answer in generate(
                str(folder_of("T5")), TEXTS, GenerateSettings(max_answer_length=5)
            )
        ]
        == bare
        != expected
    )


def test_an_expert_with_labels_answers_with_one_of_them(tmp_path: Path) -> None:
    folder = str(
        write_expert(
            expert_of("T5", labels=("yes!", "no!"), texts=("yes", "not the cat")), tmp_path / "e"
        )
    )
    answers = generate(folder, TEXTS)
    assert all(
        (answer.text, answer.label) in (("yes", "yes!"), ("not the cat", "no!"))
        for answer in answers
    )
    chosen = generate(folder, TEXTS, GenerateSettings(candidates=("red", "blue")))
    assert all(answer.text in ("red", "blue") and answer.label is None for answer in chosen)
    free = generate(folder, TEXTS, GenerateSettings(mode="greedy", max_answer_length=3))
    assert [answer.label for answer in free] == [None, None]


def test_boxes_are_in_pixels_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = loaded("Florence-2")
    answers = ["cat<loc_0><loc_500><loc_999><loc_999>", "cat<loc_0>", "cat"]
    monkeypatch.setattr(type(backbone), "generate", lambda *_, **__: answers)
    rows = [Row("", Image.new("RGB", (200, 100)))] * 3
    found = generate(str(folder_of("Florence-2")), rows)
    assert found[0].boxes == [("cat", pytest.approx((0.1, 50.05, 199.9, 99.95)))]
    assert found[1].boxes == found[2].boxes == []
    assert found[2].to_json() == {"text": "cat"}


def test_sources_that_cannot_answer(run_folder: Path, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_expert(make_expert(tiny), tmp_path / "embeds")
    with pytest.raises(
        ExpertError,
        match=(
            r"expert 'film': backbone .* embeds and generates nothing; use pidep export and pidep "
            r"infer"
        ),
    ):
        generate(str(tmp_path / "embeds"), TEXTS)
    with pytest.raises(
        ExpertError,
        match=r"expert 'e': made for backbone .*, .* is sha256:.*; give its own as `backbone`",
    ):
        generate(str(run_folder), TEXTS, backbone=str(folder_of("BART")))
    with pytest.raises(
        UsageError, match=r"holds no expert.json, so it is a backbone itself; leave `backbone` out"
    ):
        generate(str(folder_of("T5")), TEXTS, backbone="t5-small")
    with pytest.raises(
        UsageError,
        match=(
            "mode 'constrained': needs candidates, and there is no expert with labels; give "
            "`candidates`"
        ),
    ):
        generate(str(run_folder), TEXTS, GenerateSettings(mode="constrained"))
    with pytest.raises(
        UsageError, match="mode 'beam': takes no candidates; use `mode=constrained`"
    ):
        generate(str(run_folder), TEXTS, GenerateSettings(mode="beam", candidates=("red",)))


def test_the_command_line_prints_an_answer_a_line(
    inside: Callable[..., Done], run_folder: Path
) -> None:
    expected = [answer.text for answer in generate(str(run_folder), TEXTS)]
    done = inside("generate", run_folder, "--text", TEXTS[0], "--text", TEXTS[1])
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == expected


def test_the_command_line_in_all_its_forms(
    inside: Callable[..., Done], run_folder: Path, tmp_path: Path
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    expected = [answer.to_json() for answer in generate(str(run_folder), TEXTS)]
    done = inside("generate", run_folder, "--json", stdin=lines.encode())
    assert [json.loads(line) for line in done.out.splitlines()] == expected
    beams = inside(
        "generate",
        run_folder,
        "--text",
        TEXTS[0],
        "--mode",
        "beam",
        "--num-beams",
        2,
        "--max-answer-length",
        2,
    )
    wanted = generate(
        str(run_folder), TEXTS[:1], GenerateSettings(mode="beam", num_beams=2, max_answer_length=2)
    )
    assert beams.out.splitlines() == [wanted[0].text]
    one = inside(
        "generate", run_folder, "--text", TEXTS[0], "--candidate", "red", "--candidate", "blue"
    )
    assert one.out.strip() in ("red", "blue")
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    seen = inside(
        "generate",
        folder_of("Florence-2"),
        "--image",
        tmp_path / "a.png",
        "--text",
        "what",
        "--text",
        "red cat",
    )
    rows = [Row("what", tmp_path / "a.png"), Row("red cat", tmp_path / "a.png")]
    assert seen.out.splitlines() == [
        answer.text for answer in generate(str(folder_of("Florence-2")), rows)
    ]
    assert rows_of("Florence-2")


def test_tune_generate_and_report_from_the_command_line(
    inside: Callable[..., Done],
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    task, run = answered(tmp_path, count=40), tmp_path / "run"
    done = inside(
        "tune",
        task,
        "--backbone",
        folder_of("T5"),
        "--out",
        run,
        "--steps",
        2,
        "--rank",
        2,
        "--max-answer-length",
        3,
        "--json",
    )
    assert json.loads(done.out)["metrics"].keys() == {"backbone", "own_expert"}
    answers = inside("generate", run, "--text", "the red cat").out.splitlines()
    assert answers == [answer.text for answer in generate(str(run), ["the red cat"])]
    assert inside("report", run).code == 0
    assert "is of the encoder-decoder" not in (run / "report.html").read_text()
    assert_refused(
        inside("report", run, "--paths"),
        "its answers are free texts, and a path is walked between classifiers; run without --paths",
    )
    done = inside("export", run, "--repo", tmp_path / "repo", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["parity"]["both"]["argmax_flips"] == 0
    assert_refused(
        inside(
            "compare",
            task,
            labelled(tmp_path),
            "--full",
            "--backbone",
            folder_of("T5"),
            "--out",
            tmp_path / "c",
        ),
        "scores and generates texts, and a backbone that embeds",
    )
    free = inside(
        "compare",
        task,
        labelled(tmp_path),
        "--full",
        "--backbone",
        tiny_folder,
        "--out",
        tmp_path / "c",
    )
    assert_refused(
        free,
        r"task 'both': its answers are free texts \(target\), and classifiers are compared; tune "
        r"it with pidep tune",
    )


def test_a_run_with_labels_is_reported_with_its_confusions(
    inside: Callable[..., Done], tmp_path: Path
) -> None:
    task, run = labelled(tmp_path, count=40), tmp_path / "run"
    assert (
        inside(
            "tune", task, "--backbone", folder_of("T5"), "--out", run, "--steps", 2, "--rank", 2
        ).code
        == 0
    )
    assert inside("report", run).code == 0
    assert "as the run says" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (
            ["--mode", "beem", "--text", "a"],
            b"",
            r"--mode: expected 'greedy', .*, found 'beem' \(did you mean 'beam'\?\)",
        ),
        ([], b"", "nothing to answer; give --text, --image, or JSONL on standard input"),
        (
            [],
            b"\n{}\n[1]\n",
            r'standard input, line 3: expected {"text": …, "image": PATH}, found \'\[1\]\'',
        ),
        ([], b'{"txt": "a"}\n', "standard input, line 1: expected"),
        (
            ["--text", "a", "--text", "b", "--image", "x", "--image", "y", "--image", "z"],
            b"",
            "--text: 2 texts and 3 images; give one image",
        ),
        (
            ["--text", "a", "--image", "nowhere.png"],
            b"",
            "row 1: has an image, and backbone .* reads text only",
        ),
        (["--text", " "], b"", "row 1: expected a text, an image or both, found neither"),
    ],
)
def test_what_is_refused_is_one_line(
    inside: Callable[..., Done],
    run_folder: Path,
    arguments: list[str],
    stdin: bytes,
    message: str,
) -> None:
    assert_refused(inside("generate", run_folder, *arguments, stdin=stdin), message)


def test_a_source_that_does_not_exist(inside: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(
        inside("generate", tmp_path / "nowhere", "--text", "a"),
        "backbone '.*nowhere': no such folder; give the place where it lies now as --backbone",
    )
