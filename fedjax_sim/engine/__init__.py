"""The engine: rounds over cohorts, chunks, lanes and devices."""
