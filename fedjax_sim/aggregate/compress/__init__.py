"""Compressors: transforms that send fewer bits."""
