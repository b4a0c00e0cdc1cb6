"""Tracked runs beside each other: a table, figures, and one page that opens offline."""
