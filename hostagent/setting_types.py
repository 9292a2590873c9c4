"""What tables of the settings are made of; a description completes "expected ..." for who typed something else."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def absolute(path: Path) -> Path:
    """The path; ValueError for one that could lead elsewhere, or break a file that it is written to."""
    # No "..": what is below a directory of ours must stay there. No quotes: paths go into qemu.conf.
    text = str(path)
    if not path.is_absolute() or ".." in path.parts or not text.isprintable() or '"' in text or "\\" in text:
        raise ValueError("not absolute")
    return path


AbsolutePath = Annotated[
    Path,
    Field(strict=False, description="an absolute path without '..', quotes or backslashes"),
    AfterValidator(absolute),
]
Seconds = Annotated[float, Field(gt=0, le=3600, description="a number of seconds above 0, at most 3600")]
Text = Annotated[str, Field(min_length=1, description="a text that is not empty")]
YesOrNo = Annotated[bool, Field(description="true or false")]
Command = Annotated[
    tuple[Text, ...],
    Field(strict=False, min_length=1, description="a list of texts: an absolute path and its arguments"),
]


class Table(BaseModel):
    """A table: no key but its own, no value that is only nearly one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
