"""Sets by name, fetched and checked; pickles from strangers."""
