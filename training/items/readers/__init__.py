"""One file per input layout; each `read(config, ...)` returns the item table and events or rows."""
