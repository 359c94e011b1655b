"""Transforms for privacy: clips, noise, secure sums."""
