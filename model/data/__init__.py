"""Clip sources (procedural GelSight, frame folders, videos) and the one uint8 frame store that holds them."""
