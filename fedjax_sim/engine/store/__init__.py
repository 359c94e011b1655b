"""Where examples, rows and states live."""
