"""Numerics of transforms: hash-free rotations, codes and roundings. Private: no name is handed on."""
