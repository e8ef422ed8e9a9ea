"""Randomness without state: every draw has a generator of its own, seeded by the run's seed, a purpose and a place.

A resumed run, and every process of a run on several devices, therefore draws what one undisturbed process would.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, device: torch.device, purpose: str, *place: int) -> torch.Generator:
    """A generator on `device` for one draw, such as ("batch", epoch, micro-batch)."""
    name = repr((seed, purpose, *place)).encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
    return torch.Generator(device).manual_seed(number)
