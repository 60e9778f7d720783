"""Text files and tables that people write: prompts, captions, stories, CSV files of any office program."""

import codecs
import csv
import io
import os
from typing import Any

from etils import epath

# By their byte-order marks, the longest first. Excel and Notepad write them.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK = "\ufeff"  # what a mark becomes in text, such as that of the second file in a joined one


def read(path: str | os.PathLike) -> str:
    """Reads a text file: UTF-8, or what its byte-order mark says. Marks are not part of the text.

    Raises:
      ValueError: if it cannot be read or is other text; names the file. Other encodings (Latin-1) cannot be told apart.
    """
    try:
        content = epath.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as text ({error.strerror or error})") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: cannot be read as text (line {line} is not {encoding.upper()}): save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: cannot be read as text (it holds zero bytes): save it as UTF-8")
    return text.replace(_MARK, "")


def lines(path: str | os.PathLike) -> list[str]:
    """Returns the lines of a text file without surrounding spaces, and without empty lines.

    Raises:
      ValueError: as `read`.
    """
    return [line.strip() for line in read(path).splitlines() if line.strip()]


def table(path: str | os.PathLike) -> tuple[list[str], list[dict[str, str]]]:
    """Reads a CSV file with a header, separated by commas, semicolons or tabs.

    Returns:
      The columns, and the rows by column; missing cells are "".

    Raises:
      ValueError: as `read`, and if it is not CSV.
    """
    text = read(path)
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        columns = [name.strip() for name in next(reader, [])]
        rows = [dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False)) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}: cannot be read as CSV (line {reader.line_num}: {error})") from error
    return columns, rows


def is_true(cell: Any) -> bool:
    """Returns whether a cell says "True", as Python, or "TRUE", as Excel writes it."""
    return str(cell).strip().lower() in ("true", "1")
