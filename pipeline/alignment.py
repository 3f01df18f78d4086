"""Two pictures laid over each other, and how well they then agree.

For telling whether they are copies of one picture: shift, size, mirroring and light are made up for.
"""

import numpy as np
from scipy import fft, ndimage

# Edges are what lies between these two Gaussian blurs, px, at half size too, where they are the coarser for it.
_FINE, _COARSE = 1.0, 4.0
_REACH = 2  # px at half size, how far shifts are looked for
# Correlation of the edges at the best shift, below which aligning them is not tried.
_ALIGNABLE = 0.7
_COARSE_STEPS, _FINE_STEPS = 5, 3
# An alignment beyond this (px, part of the size) has lost its way.
_MAX_SHIFT, _MAX_SCALING = 6.0, 0.2
_NEIGHBOURHOOD, _FAINT = 2.5, 0.05  # px; share of a picture's mean energy of edges that is no evidence
_WORST_PLACES = 0.05
# Where light made white or black of everything, nothing can be compared; if no more than this is left, all is.
_CLIPPED, _COMPARABLE = (1, 254), 0.25


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Say how well pictures agree with their partners, mirrored if need be and laid over them.

    Shift and mirroring are found at half size by correlating at all shifts at once; then shift and size, down and
    across, are refined, at half and at full size.

    Args:
        first: Grey pictures, float32 (n, S, S), S even and at least 24, in levels from 0 to 255.
        second: Their partners, likewise.

    Returns:
        float32 (n,), 1 for the same picture and 0 where a look finds little in common. It is about the places that
        agree worst, so two faces that differ in one place, the mouth say, have a low one.
    """
    found = np.zeros(len(first), np.float32)
    halves = _halve(first), _halve(second)
    edges = [_edges(half) for half in halves]
    plain, plain_shift = _best_shift(edges[0], edges[1])
    other, other_shift = _best_shift(edges[0], edges[1][:, :, ::-1])
    near = np.flatnonzero(np.maximum(plain, other) > _ALIGNABLE)
    mirrored = (other > plain)[near]
    shift = np.where(mirrored[:, None], other_shift[near], plain_shift[near])
    place = np.stack([np.ones_like(shift), shift], axis=2)
    half, second = (_turn(pictures[near], mirrored) for pictures in (halves[1], second))
    place = _align(halves[0][near], half, place, _COARSE_STEPS)
    place[:, :, 1] *= 2
    place = _align(first[near], second, place, _FINE_STEPS)
    agreeing = _agreement_in_place(_without_margin(first[near]), _without_margin(_lay(second, place)))
    scaling, shift = np.abs(place[:, :, 0] - 1).max(axis=1), np.abs(place[:, :, 1]).max(axis=1)
    found[near] = np.where((scaling < _MAX_SCALING) & (shift < _MAX_SHIFT), agreeing, 0)
    return found


def _edges(pictures: np.ndarray) -> np.ndarray:
    """What has neither light nor noise in it, float32 (n, S, S): a difference of Gaussian blurs."""
    blurs = [ndimage.gaussian_filter(pictures, (0, sigma, sigma)) for sigma in (_FINE, _COARSE)]
    return blurs[0] - blurs[1]


def _halve(pictures: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    count, size, _ = pictures.shape
    return pictures.reshape(count, size // 2, 2, size // 2, 2).mean(axis=(2, 4))


def _turn(pictures: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Pictures, some of them mirrored."""
    return np.where(mirrored[:, None, None], pictures[:, :, ::-1], pictures)


def _without_margin(pictures: np.ndarray) -> np.ndarray:
    """Pictures without the outer twelfth, where a shifted partner has nothing."""
    margin = pictures.shape[1] // 12
    return pictures[:, margin:-margin, margin:-margin]


def _agreement_in_place(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How well the edges of aligned pictures agree in all places but the worst few, (n,), at most 1.

    The structure term of SSIM (Wang et al., "Image quality assessment: from error visibility to structural
    similarity", 2004), on edges, and not its mean but a low quantile: of two faces that differ in one place, the
    mouth say, that place decides.
    """
    clipped = [(pictures <= _CLIPPED[0]) | (pictures >= _CLIPPED[1]) for pictures in (first, second)]
    # The blur of the edges carries what is clipped some pixels further.
    usable = ~ndimage.binary_dilation(clipped[0] | clipped[1], np.ones((1, 5, 5), bool))
    usable |= usable.mean(axis=(1, 2), keepdims=True) < _COMPARABLE
    share = usable / usable.sum(axis=(1, 2), keepdims=True, dtype=np.float32)
    one, other = _edges(first), _edges(second)
    for edges in (one, other):
        edges -= (edges * share).sum(axis=(1, 2), keepdims=True)
        edges /= np.maximum(np.sqrt((edges**2 * share).sum(axis=(1, 2), keepdims=True)), 1e-3)
        edges *= usable
    around = (0, _NEIGHBOURHOOD, _NEIGHBOURHOOD)
    common = 2 * ndimage.gaussian_filter(one * other, around)
    total = ndimage.gaussian_filter(one**2 + other**2, around)
    places = np.where(usable, (common + _FAINT) / (total + _FAINT), np.inf).reshape(len(one), -1)
    worst = (_WORST_PLACES * usable.sum(axis=(1, 2))).astype(np.int64)
    return np.sort(places, axis=1)[np.arange(len(places)), worst]


def _best_shift(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At which shift, float32 (n, 2), second looks most like first, and the correlation (n,) there."""
    offsets = np.arange(-_REACH, _REACH + 1)
    inner = np.zeros(first.shape[1:], np.float32)
    _without_margin(inner[None])[:] = 1

    def at_offsets(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        everywhere = fft.irfft2(np.conj(fft.rfft2(one)) * fft.rfft2(other), s=inner.shape)
        return everywhere[:, offsets[:, None], offsets].reshape(len(other), -1)

    first = first * inner
    energy = (first**2).sum(axis=(1, 2))[:, None] * at_offsets(inner[None], second**2)
    correlation = at_offsets(first, second) / np.sqrt(np.maximum(energy, 1e-6))
    best = correlation.argmax(axis=1)
    down, across = np.divmod(best, len(offsets))
    return correlation.max(axis=1), offsets[np.stack([down, across], axis=1)].astype(np.float32)


def _lay(pictures: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Each picture (n, S, S), read at scale * u + shift, u from its middle; ``place`` (n, down/across, scale/shift)."""
    size = pictures.shape[1]
    middle = np.float32((size - 1) / 2)
    from_middle = np.arange(size, dtype=np.float32) - middle
    weights = tents(place[:, :, :1] * from_middle + place[:, :, 1:] + middle, size)
    return weights[:, 0] @ pictures @ weights[:, 1].transpose(0, 2, 1)


def _align(first: np.ndarray, second: np.ndarray, place: np.ndarray, steps: int) -> np.ndarray:
    """Improve the places at which second lies over first, by Gauss-Newton steps (Lucas and Kanade, 1981).

    Edges are compared, of what is left without the margin, lest a border that a shift brought in reach into it. The
    gain of one picture over the other is solved for along with scale and shift.
    """
    size = first.shape[1]
    from_middle = _without_margin(
        np.arange(size, dtype=np.float32)[None, :, None].repeat(size, 2) - (size - 1) / 2
    )
    target = _edges(_without_margin(first)).reshape(len(first), -1, 1)
    for _ in range(steps):
        laid = _edges(_without_margin(_lay(second, place)))
        down, across = np.gradient(laid, axis=(1, 2))
        y, x = from_middle, from_middle.transpose(0, 2, 1)
        terms = (down * y, down, across * x, across, laid, np.ones_like(laid))
        slopes = np.stack(terms, axis=1).reshape(len(first), len(terms), -1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        # A trace of damping, for pictures with edges in one direction only.
        damping = 1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + np.float32(1e-6)
        solved = np.linalg.solve(normal + damping * np.eye(len(terms), dtype=np.float32), slopes @ target)[
            :, :, 0
        ]
        step = solved[:, :4] / np.maximum(solved[:, 4:5], 0.1)
        place = place + np.clip(step, -2, 2).reshape(-1, 2, 2)
    return place


def tents(places: np.ndarray, size: int, width: float = 1.0) -> np.ndarray:
    """Weights of linear interpolation at ``places`` (..., S) of a line: (..., S, size); 0 off its ends."""
    distance = places[..., None] - np.arange(size, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(distance) / np.float32(width))
