"""HTML pages with everything inside: they open offline, on a phone and on a desktop, in light and in dark."""
