"""The tables of help pages: a word that is longer than its column continues in the next row."""

from __future__ import annotations

from typing import Any


def fold_long_words() -> None:
    """Let Typer's tables fold long words; by default they cut the names of long options on 80 columns."""
    import typer.rich_utils
    from rich.columns import Columns
    from rich.table import Table
    from rich.text import Text

    class FoldingTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*cells, **options)
            for column in self.columns:
                column.overflow = "fold"

    class FoldingColumns(Columns):
        def __init__(self, renderables: Any, *args: Any, **options: Any) -> None:
            super().__init__(renderables, *args, **options)
            for text in self.renderables:
                if isinstance(text, Text):
                    text.overflow = "fold"

    module: Any = typer.rich_utils
    module.Table, module.Columns = FoldingTable, FoldingColumns
