"""Tasks: inputs, answers, data and metric. No torch.

May import `pidep.inputs`, `pidep.plugins`, `pidep.files` and `pidep.errors`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.tasks.check import Problem, TaskCheck, check_task
    from pidep.tasks.data import Split, TaskData, few_shot, load_data
    from pidep.tasks.data_source import Data
    from pidep.tasks.metrics import score, score_texts
    from pidep.tasks.packaged import PackagedTask, packaged_tasks
    from pidep.tasks.task import Task, load_task

__all__ = [
    "Data",
    "PackagedTask",
    "Problem",
    "Split",
    "Task",
    "TaskCheck",
    "TaskData",
    "check_task",
    "few_shot",
    "load_data",
    "load_task",
    "packaged_tasks",
    "score",
    "score_texts",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Data": "pidep.tasks.data_source",
        "PackagedTask": "pidep.tasks.packaged",
        "Problem": "pidep.tasks.check",
        "TaskCheck": "pidep.tasks.check",
        "check_task": "pidep.tasks.check",
        "Split": "pidep.tasks.data",
        "Task": "pidep.tasks.task",
        "TaskData": "pidep.tasks.data",
        "few_shot": "pidep.tasks.data",
        "load_data": "pidep.tasks.data",
        "load_task": "pidep.tasks.task",
        "packaged_tasks": "pidep.tasks.packaged",
        "score": "pidep.tasks.metrics",
        "score_texts": "pidep.tasks.metrics",
    },
)
