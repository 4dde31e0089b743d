"""Format tables: for a page, a spreadsheet or a paper. Each row is its cells by the names of the columns."""

import csv
import io
import re

WORDS = ("run", "strategy", "checkpoint", "plan")  # columns of words; the rest hold numbers


def markdown(rows: list[dict[str, str]]) -> str:
    """Format the table for a README, columns aligned."""
    lines = [list(rows[0]), *(list(cells.values()) for cells in rows)]
    lines = [[re.sub(r"([\\|`*_<>\[\]~])", r"\\\1", one_line(cell)) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def one_line(cell: str) -> str:
    return " ".join(cell.split())


def comma_separated(rows: list[dict[str, str]]) -> str:
    """Format the table for a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def latex(rows: list[dict[str, str]]) -> str:
    """Format the table for a paper, with the rules of the package booktabs."""
    signs = {sign: f"\\{sign}" for sign in "%_&#{}$"}
    named = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
    signs |= {sign: rf"\text{name}{{}}" for sign, name in named.items()} | {"±": r"$\pm$"}

    def line(cells) -> str:
        return " & ".join(one_line(cell).translate(str.maketrans(signs)) for cell in cells) + r" \\"

    alignment = "".join("l" if name in WORDS else "r" for name in rows[0])
    head = rf"\begin{{tabular}}{{{alignment}}}"
    body = "\n".join(line(cells.values()) for cells in rows)
    return "\n".join([head, r"\toprule", line(rows[0]), r"\midrule", body, r"\bottomrule", r"\end{tabular}"])


FORMATS = {"markdown": markdown, "csv": comma_separated, "latex": latex}
