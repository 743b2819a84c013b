"""Where polymers come from. A source yields rows; it decides nothing about chemistry."""

from __future__ import annotations

from data_shards.sources.table import Row, read_table, read_textbook

SOURCES = {"table": read_table, "textbook": read_textbook}

__all__ = ["SOURCES", "Row", "read_table", "read_textbook"]
