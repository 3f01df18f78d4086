"""Random numbers from counters: no state, so a draw does not depend on what was drawn before it.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
https://doi.org/10.1145/2714064.2660195) adds a constant to a state and hashes the sum. Its n-th number is
therefore a hash of start + n * constant, and can be had without the numbers before. Here every quantity that is
drawn has a start of its own, a hash of seed, epoch, position and draw, and n is the sample.
"""

import hashlib

import torch
from torch import Tensor

from pipeline.models.devices import get_constant


def _signed(number: int) -> int:
    """The int64 that has the last 64 bits of a number; its products wrap as unsigned ones do."""
    return (number + 2**63) % 2**64 - 2**63


GAMMA = _signed(0x9E3779B97F4A7C15)
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
BITS = 24  # of a draw: as many as a float32 holds


def derive_seed(seed: int, epoch: int, index: int) -> int:
    """Derive the seed of one sample's draws: 63 bits of a hash of seed, epoch and sample."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def hash_numbers(*numbers: int) -> int:
    """Hash integers of any size and sign to an int64; their order matters."""
    state = 0
    for number in (len(numbers), *numbers):
        state = (state + GAMMA + number) % 2**64
        for shift, factor in ROUNDS:
            state = (state ^ (state >> shift)) * factor % 2**64
        state ^= state >> LAST_SHIFT
    return _signed(state)


def splitmix64(states: Tensor) -> Tensor:
    """SplitMix64's output in given states, int64 of any shape (64 bits; the sign has no meaning)."""
    for shift, factor in ROUNDS:
        states = _xor_shifted(states, shift).mul_(_signed(factor))
    return _xor_shifted(states, LAST_SHIFT)


def _xor_shifted(states: Tensor, shift: int) -> Tensor:
    """States xor states shifted right, zeros moving in."""
    return (states >> shift).bitwise_and_(2 ** (64 - shift) - 1).bitwise_xor_(states)


class Draws:
    """Uniform draws of every sample in every epoch under one seed.

    What is drawn are streams, a pair (position in the list of transforms, draw of that transform) each.
    """

    def __init__(self, seed: int, streams: list[tuple[int, int]]) -> None:
        self.seed = seed
        self.starts = tuple(hash_numbers(seed, *stream) for stream in streams)

    def __call__(self, samples: Tensor, epoch: int) -> Tensor:
        """Draw for samples of these numbers, int64 (B,): float32 (D, B) in [0, 1), multiples of 2**-24.

        One row a stream, on the device of ``samples``.
        """
        states = samples * GAMMA + hash_numbers(self.seed, epoch)
        states = states + get_constant(self.starts, samples.device, torch.int64).view(-1, 1)
        # The highest bits; >> copies the sign, so the mask takes it off again.
        bits = (splitmix64(states) >> (64 - BITS)).bitwise_and_(2**BITS - 1)
        return bits.to(torch.float32).mul_(2.0**-BITS)
