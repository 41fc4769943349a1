"""The table of docs/guides/datasets.md, made from the task files.

`python -m tests.tasks.doc_table` writes it again.
"""

from __future__ import annotations

import re
from pathlib import Path

from pidep.tasks import task as tasks
from pidep.tasks.task import Task, load_task

PAGE = Path(__file__).parent.parent.parent / "docs" / "guides" / "datasets.md"
FILES = Path(tasks.__file__).parent / "paper"
ORDER = (
    "food101",
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "flowers102",
    "oxford_pets",
    "stanford_cars",
)
ORDER += (
    "mnli",
    "qqp",
    "mrpc",
    "qnli",
    "rte",
    "sst2",
    "refcoco",
    "refcoco_plus",
    "refcocog",
    "snli_ve",
    "coco_captions",
    "vqav2",
)
TABLE = re.compile(r"<!-- datasets -->\n(.*?)\n<!-- /datasets -->", re.DOTALL)


def table() -> str:
    """One line per task."""
    rows = [
        "| task | what it is | answers | metric | dataset, test split | licence |",
        "| --- " * 6 + "|",
    ]
    for name in ORDER:
        task, title = (
            load_task(f"paper/{name}"),
            (FILES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
        )
        data = task.data
        dataset = f"`{data.dataset}`" + (f" `{data.config}`" if data.config else "")
        test = (
            f"`{data.test_dataset}` `{data.test_split}`"
            if data.test_dataset
            else f"`{data.test_split}`"
        )
        what = title.split(" The test split of GLUE")[0].rstrip(".")
        rows.append(
            f"| `paper/{name}` | {what} | {_answers(task)} | `{task.metric}` | {dataset}, {test} | "
            f"{task.licence} |"
        )
    return "\n".join(rows)


def _answers(task: Task) -> str:
    if task.label_text:
        return f"“{task.label_text}”"
    if task.labels:
        return ", ".join(f"“{text}”" for text in task.labels.values())
    return "a box" if task.target_is == "box" else "a text"


def main() -> None:
    """Write the table again."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        TABLE.sub(lambda _: f"<!-- datasets -->\n{table()}\n<!-- /datasets -->", page),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
