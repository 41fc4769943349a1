"""`data` of a task file: where the rows come from and how their files are written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pidep.errors import fault_of_text
from pidep.tasks.memory import MemoryRows
from pidep.tasks.tables import TextFormat, require_encoding

__all__ = ["Data"]


class Data(BaseModel):
    """The source of the rows: exactly one of `packaged`, `path`, `files`, `dataset`, `rows`."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    packaged: str | None = None
    path: Path | None = None
    rows: MemoryRows | None = Field(default=None, exclude=True, repr=False)
    """Rows in memory (`Task.from_rows`); `pidep.tasks.memory.write_task` makes files of them."""
    files: dict[Literal["train", "test"], Path] | None = None
    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    test_dataset: str | None = None
    """The dataset of the test split, where it was published separately."""
    images: Path | None = None
    """Folder of a dataset's relative image paths; `$PIDEP_IMAGES` when absent."""
    each: str | None = None
    """Column with a list. A row becomes as many rows, each with one element in that column."""
    encoding: str | None = None
    """Encoding of text files, such as cp1252. Without it, UTF-8 or what a byte order mark says."""
    delimiter: str | None = None
    """Character between the fields of CSV and TSV files. Without it, a tab in .tsv; in .csv, the
    one that splits the header into the columns of the task."""
    quoting: Literal["auto", "csv", "none"] = "auto"
    """`csv`: quotation marks enclose fields; `none`: they are part of the texts; `auto`: pidep
    looks at the file, and refuses one that can be read in both ways."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = ("packaged", "path", "files", "dataset", "rows")
        given = [key for key in sources if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of packaged, path, files, dataset; found {given or 'none'}"
            )
        if self.files is not None and set(self.files) != {"train", "test"}:
            raise ValueError("files needs both train and test")
        if self.text_format != TextFormat() and not (self.path or self.files):
            raise ValueError("encoding, delimiter and quoting go with path or files")
        if self.test_dataset is not None and (self.dataset is None or self.test_split is None):
            raise ValueError("test_dataset goes with dataset and test_split")
        return self

    @field_validator("path", "images", "files")
    @classmethod
    def _possible_paths(cls, found: Path | dict[str, Path] | None) -> Path | dict[str, Path] | None:
        for path in found.values() if isinstance(found, dict) else [found]:
            # The operating system ends a path at a zero byte.
            zero = "holds a zero byte; remove it" if "\0" in str(path) else ""
            if fault := fault_of_text(str(path)) or zero:
                raise ValueError(f"the path {fault}")
        return found

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        return None if name is None else require_encoding(name)

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        # A tab cannot be seen in YAML, so it has names.
        found = "\t" if delimiter in ("tab", r"\t") else delimiter
        if found is not None and (len(found) != 1 or found in '"\r\n'):
            raise ValueError("expected one character such as ';', or tab")
        return found

    @property
    def text_format(self) -> TextFormat:
        """How the text files are written."""
        return TextFormat(self.encoding, self.delimiter, self.quoting)
