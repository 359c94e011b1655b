"""Federations in files, in caches, or made on demand."""
