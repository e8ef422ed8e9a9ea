"""Clip sources, the uint8 frame stores that hold their decoded frames, and the clips that are cut from these."""
