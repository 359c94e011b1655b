"""A round on the devices."""
