"""`pidep predict`: the rows of a file, answered offline, in three formats, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from pidep.errors import ExpertError, TaskError, UsageError
from pidep.experts.folder import write_expert
from pidep.inputs.row import Row
from pidep.inputs.template import Template
from pidep.tuning.predict import predict
from pidep.tuning.predict_file import WrongRows, predict_file
from pidep.tuning.settings import PredictSettings
from tests.adapters.small_experts import make
from tests.backbones.tiny_models import folder_of, loaded
from tests.cli.run import Done
from tests.conftest import make_expert, png

MAIL = Template("the {subject} was {verdict}")
ROWS = [
    {"subject": "film", "verdict": "good", "label": "positive"},
    {"subject": "great film", "verdict": "awful", "label": "negative"},
    {"subject": "", "verdict": "very bad", "label": "negative"},
]
TEXTS = ["the film was good", "the great film was awful", "the  was very bad"]


@pytest.fixture
def expert(tiny: Any, tmp_path: Path) -> Any:
    found = replace(make_expert(tiny), template=MAIL)
    write_expert(found, tmp_path / "run" / "expert")
    return found


def settings(folder: Path, file: Path, **more: Any) -> PredictSettings:
    return PredictSettings(run=folder / "run", file=file, **more)


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_template_makes_the_texts_and_every_format_has_the_same_answers(
    expert: Any, tiny: Any, tmp_path: Path
) -> None:
    expected = predict(expert, TEXTS, backbone=tiny)
    file = tmp_path / "rows.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["label", "subject", "verdict"], delimiter=";")
        writer.writeheader()
        writer.writerows(ROWS)
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"answers.{ending}"
        found = predict_file(settings(tmp_path, file, out=out, batch_size=2), backbone=tiny)
        assert [one.label for one in found.answers] == [one.label for one in expected]
        for one, other in zip(found.answers, expected, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["row"], line["line"]) for line in lines] == [(1, 2), (2, 3), (3, 4)]
    table = pyarrow.parquet.read_table(tmp_path / "answers.parquet").to_pylist()
    with (tmp_path / "answers.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    for line, row, record in zip(lines, table, written, strict=True):
        assert list(line) == ["row", "line", "label", "scores", "digest"]
        assert list(row) == list(record)
        assert list(row) == ["row", "line", "label", "score_negative", "score_positive", "digest"]
        assert row["digest"] == line["digest"] == record["digest"] == expert.digest
        assert row["label"] == line["label"] == record["label"]
        for label, score in line["scores"].items():
            assert row[f"score_{label}"] == score == float(record[f"score_{label}"])


def test_quotation_marks_of_two_readings_are_settled_by_an_option(
    expert: Any, tiny: Any, tmp_path: Path, inside: Callable[..., Done]
) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text('subject\tverdict\n"a\tgood\nthe\tbad\nfilm"\tgood\n')
    done = inside("predict", tmp_path / "run", file)
    assert done.code == 2
    assert "set --quoting none (in a task file, under data)" in done.err
    found = predict_file(settings(tmp_path, file, quoting="none"), backbone=tiny)
    texts = ['the "a was good', "the the was bad", 'the film" was good']
    assert [place.line for place in found.places] == [2, 3, 4]
    for one, other in zip(found.answers, predict(expert, texts, backbone=tiny), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_wrong_rows_are_all_listed_and_nothing_is_written(
    expert: Any, tiny: Any, tmp_path: Path, inside: Callable[..., Done]
) -> None:
    wrong = [{"subject": "x"}, {"subject": " ", "verdict": ""}, {"subject": ["x"], "verdict": "y"}]
    file = jsonl(tmp_path, [ROWS[0], *wrong])
    with file.open("a") as stream:
        stream.write("{\n")
    out = tmp_path / "answers.csv"
    with pytest.raises(WrongRows, match=r"rows.jsonl: 4 of 5 rows cannot be answered") as caught:
        predict_file(settings(tmp_path, file, out=out), backbone=tiny)
    places = [
        "row 2: no column 'verdict'",
        "row 3: the text is empty",
        "row 4: column 'subject': expected a text",
        "row 5: not a JSON object",
    ]
    for fault, place in zip(caught.value.faults, places, strict=True):
        assert f"{file}, {place}" in fault
    done = inside("predict", tmp_path / "run", file, "--out", out)
    assert done.code == 2
    assert len(done.err.splitlines()) == 5
    assert done.err.splitlines()[-1].startswith(f"pidep: {file}: 4 of 5 rows")
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run"]


def test_an_output_is_replaced_only_when_told(expert: Any, tiny: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path, ROWS)
    out = tmp_path / "answers.csv"
    out.write_text("mine")
    with pytest.raises(UsageError, match=r"answers.csv: exists; .* give `overwrite`"):
        predict_file(settings(tmp_path, file, out=out), backbone=tiny)
    assert out.read_text() == "mine"
    predict_file(settings(tmp_path, file, out=out, overwrite=True), backbone=tiny)
    assert out.read_text().startswith("row,line,label,score_negative,")
    for name, message in (
        ("answers.txt", r"expected a name that ends in .csv, .jsonl, .parquet, found '.txt'"),
        ("rows.jsonl", "is the file of the rows"),
    ):
        wanted = settings(tmp_path, file, out=tmp_path / name, overwrite=True)
        with pytest.raises(UsageError, match=message):
            predict_file(wanted, backbone=tiny)


def test_an_expert_of_an_older_release_takes_the_template_of_its_task(
    tiny: Any, tmp_path: Path
) -> None:
    old = make_expert(tiny)
    write_expert(old, tmp_path / "run" / "expert")
    file = jsonl(tmp_path, ROWS)
    with pytest.raises(ExpertError, match=r"has no template, .* give its `task`"):
        predict_file(settings(tmp_path, file), backbone=tiny)
    task = tmp_path / "film.yaml"
    head = "name: film\nlabels: {negative: bad, positive: good}\ndata: {path: rows.jsonl}\n"
    task.write_text(f"{head}input: '{MAIL.text}'\n")
    found = predict_file(settings(tmp_path, file, task=str(task)), backbone=tiny)
    assert list(found.answers) == predict(old, TEXTS, backbone=tiny)
    task.write_text(head.replace("negative", "dull"))
    with pytest.raises(ExpertError, match="labels negative, positive, task 'film' has dull"):
        predict_file(settings(tmp_path, file, task=str(task)), backbone=tiny)


def test_images_and_candidates_of_each_row(mini: Any, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    base = make_expert(mini)
    shown = replace(base, template=Template("the {thing}", image="photo"))
    write_expert(shown, tmp_path / "run" / "expert")
    rows = [{"photo": "0.png", "thing": "film"}, {"photo": "1.png", "thing": ""}]
    found = predict_file(settings(tmp_path, jsonl(tmp_path, rows)), backbone=mini).answers
    assert found[0].scores != found[1].scores
    for number in (0, 1):
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
        (tmp_path / "photos" / str(number) / "a.png").write_bytes(png(number))
    alone = replace(base, template=Template("", image="photo"))
    write_expert(alone, tmp_path / "alone" / "expert")
    wanted = PredictSettings(run=tmp_path / "alone", file=tmp_path / "photos")
    of_folder = predict_file(wanted, backbone=mini).answers
    assert list(of_folder) == predict(alone, [Row(image=png(0)), Row(image=png(1))], backbone=mini)
    (tmp_path / "1.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(WrongRows, match=r"1 of 2 rows .* row 2 .*expected PNG"):
        predict_file(settings(tmp_path, jsonl(tmp_path, rows)), backbone=mini)
    none = np.zeros((0, mini.hidden_size), np.float32)
    chooser = replace(
        base,
        labels=(),
        label_texts=(),
        label_embeddings=none,
        template=Template("{text}", candidates="choices"),
    )
    write_expert(chooser, tmp_path / "run" / "expert")
    rows = [
        {"text": "a film", "choices": ["good", "bad"]},
        {"text": "a", "choices": ["the", "was", "very"]},
    ]
    out = tmp_path / "answers.csv"
    wanted = settings(tmp_path, jsonl(tmp_path, rows), out=out)
    answers = predict_file(wanted, backbone=mini).answers
    assert [list(one.scores) for one in answers] == [["good", "bad"], ["the", "was", "very"]]
    with out.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [json.loads(row["scores"]) for row in written] == [one.scores for one in answers]


def test_texts_are_generated(tmp_path: Path) -> None:
    from pidep.experts.folder import Expert

    backbone = loaded("T5")
    sites = make(backbone.model, "lora", seed=0, scale=0.5)
    none = np.zeros((0, 0), np.float32)
    where = str(folder_of("T5"))
    expert = Expert(
        "e", backbone.digest, sites, 1.5, (), (), none, 1.0, 12, where, max_answer_length=5
    )
    expert = replace(expert, template=Template("is the {thing} red"))
    write_expert(expert, tmp_path / "run" / "expert")
    file = jsonl(tmp_path, [{"thing": "cat"}, {"thing": "dog"}])
    out = tmp_path / "answers.csv"
    found = predict_file(settings(tmp_path, file, out=out), backbone=backbone).answers
    assert list(found) == predict(expert, ["is the cat red", "is the dog red"], backbone=backbone)
    assert out.read_text().splitlines()[0] == "row,line,label,digest"


def test_the_command_prints_jsonl(
    expert: Any, tiny: Any, tmp_path: Path, inside: Callable[..., Done]
) -> None:
    done = inside("predict", tmp_path / "run", jsonl(tmp_path, ROWS))
    assert done.code == 0
    answers = predict(expert, TEXTS, backbone=tiny)
    assert [json.loads(line)["label"] for line in done.out.splitlines()] == [
        one.label for one in answers
    ]


def test_rows_without_a_word_are_refused_offline_too(expert: Any, tiny: Any) -> None:
    with pytest.raises(TaskError, match="row 2: expected a text, an image or both"):
        predict(expert, ["a film", "\t"], backbone=tiny)
