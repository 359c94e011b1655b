"""Reducers that withstand some bad clients, up to f of n."""
