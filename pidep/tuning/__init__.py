"""`pidep tune` and its neighbours: the pipeline, its settings, run folders, offline answers.

`run_folder` owns the format of run folders: it writes and reads them. `predict` and `generate`
answer rows with an expert; `fold` and `import_peft` make experts from experts. May import
`pidep.interpolation`, `pidep.similarity`, `pidep.training` and the rooms below them.

Names are imported on first use: settings and run folders need no torch. The functions `tune`,
`predict`, `generate` and `import_peft` must be imported from the modules of the same names: here, a
function would hide its module. `pidep` itself offers `tune` and `predict` as well.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.tuning.fold import FoldedExpert, fold_expert
    from pidep.tuning.generate import GeneratedAnswer
    from pidep.tuning.predict import Prediction, load_expert
    from pidep.tuning.run_folder import Run, TuneResult, read_run
    from pidep.tuning.settings import CheckSettings, GenerateSettings, TuneSettings

__all__ = [
    "CheckSettings",
    "FoldedExpert",
    "GenerateSettings",
    "GeneratedAnswer",
    "Prediction",
    "Run",
    "TuneResult",
    "TuneSettings",
    "fold_expert",
    "load_expert",
    "read_run",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CheckSettings": "pidep.tuning.settings",
        "FoldedExpert": "pidep.tuning.fold",
        "GenerateSettings": "pidep.tuning.settings",
        "GeneratedAnswer": "pidep.tuning.generate",
        "Prediction": "pidep.tuning.predict",
        "Run": "pidep.tuning.run_folder",
        "TuneResult": "pidep.tuning.run_folder",
        "TuneSettings": "pidep.tuning.settings",
        "fold_expert": "pidep.tuning.fold",
        "load_expert": "pidep.tuning.predict",
        "read_run": "pidep.tuning.run_folder",
    },
)
