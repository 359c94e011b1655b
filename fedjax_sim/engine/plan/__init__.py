"""What the host decides of a round before the devices compute it."""
