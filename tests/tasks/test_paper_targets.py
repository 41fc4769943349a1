"""The paper's tasks: classes, boxes and targets that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pidep.errors import TaskError
from pidep.tasks.data import (
    load_data,
)
from pidep.tasks.task import Task, load_task
from tests.tasks.paper_rows import made, picture, schema, write_split

pytestmark = pytest.mark.usefixtures("places")


def test_rows_without_a_class_have_no_label(tmp_path: Path) -> None:
    features, _ = schema("sst2")
    write_split(
        tmp_path / "x", "sst2", "train", features, [{"sentence": "good", "idx": 0, "label": -1}]
    )
    task = load_task("paper/sst2")
    task = task.model_copy(
        update={
            "data": task.data.model_copy(
                update={"dataset": str(tmp_path / "x"), "test_split": None}
            )
        }
    )
    with pytest.raises(TaskError, match=r"x\[train\], row 1: column 'label' is empty"):
        load_data(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": "image"},
            r"label_text: expected class names in column 'image' of .*, found Image; write the "
            r"labels under labels",
        ),
        (
            {"label": "lable"},
            r"label_text: expected class names in column 'lable' of .*, found no such column",
        ),
        (
            {"label_names": {"apple_pye": "pie"}},
            r"label_names: 'apple_pye' is no class of .* \(did you mean 'apple_pie'\?\)",
        ),
    ],
)
def test_class_names_that_are_not_there(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_data(made("food101", tmp_path).model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "{captions} {answers}"},
            r"names several lists, captions and answers; expected one at most",
        ),
        (
            {"target": "{captions[text]}"},
            r"the target template .* does not fit it \(.*\); use \{column\} or \{column\[key\]\}",
        ),
        ({"target": "{caption}"}, r"no column 'caption'"),
        ({"data": {"each": "image_id"}}, r"row 1: column 'image_id': expected a list, found '7'"),
    ],
)
def test_targets_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "what", "image_id": 7, "captions": ["a", "b"], "answers": ["c"]}\n' * 3
    )
    values = {
        "name": "t",
        "input": "{question}",
        "target": "{captions}",
        "metric": "cider",
        "data": {"path": tmp_path / "rows.jsonl"},
    }
    data = {**values["data"], **changes.pop("data", {})}  # type: ignore[dict-item]
    with pytest.raises(TaskError, match=message):
        load_data(Task.model_validate({**values, **changes, "data": data}))


def test_a_target_may_take_one_key_of_every_answer(tmp_path: Path) -> None:
    rows = '{"question": "what %d", "answers": [{"answer": "a dog"}, {"answer": "dog"}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(rows % number for number in range(20)))
    task = Task.model_validate(
        {
            "name": "t",
            "input": "{question}",
            "target": "{answers[answer]}",
            "metric": "vqa_score",
            "data": {"path": tmp_path / "rows.jsonl"},
        }
    )
    assert load_data(task).train.targets[0] == ("a dog", "dog")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], r"box: expected four numbers, xyxy, found '\[1, 2, 3\]'"),
        (["a", 1, 2, 3], r"box: expected four numbers, xyxy"),
        ([5.0, 2.0, 4.0, 9.0], r"box: expected left ≤ right and top ≤ bottom"),
        (
            [0.0, 0.0, 40.0, 9.0],
            r"box: box .* lies outside its image of 12 × 10; it belongs to another image",
        ),
    ],
)
def test_invalid_boxes(box: list[Any], message: str, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    task = made_boxes(tmp_path, box, box_format="xyxy")
    with pytest.raises(TaskError, match=rf"rows\.jsonl, row 1: {message}"):
        load_data(task)


def test_boxes_with_width_and_height(tmp_path: Path) -> None:
    for number in range(10):
        picture(number).save(tmp_path / f"{number}.png")
    data = load_data(made_boxes(tmp_path, [3, 2, 6, 4], box_format="xywh"))
    assert data.train.targets[0] == ("<loc_250><loc_200><loc_750><loc_600>",)


def made_boxes(folder: Path, box: list[Any], *, box_format: str) -> Task:
    import json

    rows = [{"image": path.name, "bbox": box} for path in sorted(folder.glob("*.png"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "t",
        "input": "the thing",
        "image": "image",
        "target": "{bbox}",
        "target_is": "box",
        "box_format": box_format,
    }
    return Task.model_validate(
        {**values, "metric": "acc@0.5", "data": {"path": folder / "rows.jsonl"}}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "labels: {a: b, c: d}\ntarget: '{x}'",
            r"expected one of labels, label_text, candidates and target; found labels and target$",
        ),
        ("", r"expected one of labels, label_text, candidates and target; found none$"),
        (
            "label_text: a photo",
            r"label_text 'a photo': expected a template with \{label\} and nothing else in "
            r"brackets$",
        ),
        (
            "label_text: 'a {label} {x}'",
            r"label_text 'a \{label\} \{x\}': expected a template with",
        ),
        (
            "target: '{x}'\nmetric: macro_f1",
            r"metric 'macro_f1': answers that are texts have accuracy, vqa_score, bleu4, cider",
        ),
        (
            "labels: {a: b, c: d}\nmetric: cider",
            r"metric 'cider': answers that are labels have accuracy, macro_f1$",
        ),
        (
            "target: '{x}'\ntarget_is: box\nmetric: acc@0.5",
            r"target_is box: expected a target of one column, such as '\{bbox\}', and an image$",
        ),
        (
            "image: i\ntarget: '{x}'\ntarget_is: box",
            r"metric 'accuracy': answers that are boxes have acc@0\.5$",
        ),
        (
            "target: '{x}'\nmetric: rouge",
            r"metric: Input should be 'accuracy', 'macro_f1', 'acc@0\.5', .*, found 'rouge'$",
        ),
    ],
)
def test_tasks_whose_answers_do_not_go_together(changes: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(f"name: t\ndata: {{path: rows.jsonl}}\n{changes}\n")
    with pytest.raises(TaskError, match=message):
        load_task(tmp_path / "task.yaml")


def test_a_test_dataset_goes_with_a_split(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "name: t\nlabels: {a: b, c: d}\ndata: {dataset: x, test_dataset: y}\n"
    )
    with pytest.raises(TaskError, match=r"data: test_dataset goes with dataset and test_split"):
        load_task(tmp_path / "task.yaml")


def test_an_unknown_paper_task() -> None:
    with pytest.raises(
        TaskError, match=r"paper/NAME for data on a hub\) \(did you mean 'paper/food101'\?\)"
    ):
        load_task("paper/food102")
