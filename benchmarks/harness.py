"""The error of a result, and its two forms: a table and one JSON line."""

import json

import torch
from rich.console import Console
from rich.table import Table


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|, in float64."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()


def report(title: str, rows: list[dict], **facts: object) -> None:
    """Print `rows` as a table and, last, everything as one JSON line."""
    tabulate(title, rows)
    print(json.dumps({"benchmark": title, **facts, "rows": rows}))


def tabulate(title: str, rows: list[dict]) -> None:
    """Print rows of the same columns."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=140, highlight=False).print(table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
