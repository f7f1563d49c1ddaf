"""Randomness belongs to a case: a seed is a function of what it is for, never of the order in which work is done.

Seeds are counter-based: SHA-256 of the parts, so that a resumed, sharded or reordered run draws the same numbers.
"""

import hashlib

import numpy as np


def seed_for(*parts: int | str) -> int:
    """A seed of 63 bits from any number of parts, such as ``seed_for(run_seed, "sample", case_id)``.

    Parts are separated, so ``("a", "bc")`` and ``("ab", "c")`` differ. The same parts give the same seed on every machine.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for these parts (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(seed_for(*parts)))
