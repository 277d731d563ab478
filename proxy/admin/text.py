"""The text helpers of proxy.core.text, under the name that the command line knows."""

from proxy.core.text import COLUMN_LIMIT, fields, harmless, iso, span, table

__all__ = ["COLUMN_LIMIT", "fields", "harmless", "iso", "span", "table"]
