"""Two pictures laid over each other, and how well they then agree.

For telling whether they are copies of one picture: shift, size, mirroring and light are made up for.
"""

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

# Edges are what lies between two Gaussian blurs of these widths, px; at half size they are the coarser for it.
_FINE, _COARSE = 1.0, 4.0
# For the first look, px at half size: finer edges, on which a border that a shift brought in tells less; and how far
# shifts are looked for.
_FIRST_COARSE, _REACH = 2.0, 2
# Correlation of the edges at the best shift, below which aligning them is not tried.
_ALIGNABLE = 0.68
# The same after alignment at half size, below which it is not tried at full size.
_ALIGNED = 0.9
_COARSE_STEPS, _FINE_STEPS = 4, 3
_LONGEST_STEP = np.float32([0.05, 1.0])  # in scale and in shift
# An alignment beyond this scaling and shift, px, has lost its way.
_FARTHEST = np.float32([0.2, 6.0])
_NEIGHBOURHOOD, _FAINT = 2.5, 0.05  # px; share of a picture's mean energy of edges that is no evidence
_WORST_PLACES = 0.05
# Where light made white or black of everything, nothing can be compared; if no more than this is left, all is.
_CLIPPED, _COMPARABLE = (1, 254), 0.25


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Say how well pictures agree with their partners, mirrored if need be and laid over them.

    Mirroring and a first shift, of up to a twelfth, are found at half size by correlating at all shifts; then shift
    and size, down and across, are refined, at half and at full size.

    Args:
        first: Grey pictures, float32 (n, S, S), S even and at least 24, in levels from 0 to 255.
        second: Their partners, likewise.

    Returns:
        float32 (n,), 1 for the same picture and 0 where a look finds little in common. It is about the places that
        agree worst, so two faces that differ in one place, the mouth say, have a low one.
    """
    found = np.zeros(len(first), np.float32)
    halves = _halve(first), _halve(second)
    correlation, shift = _first_look(*halves)
    # A face is much like its mirror image, so both ways may be worth a second look.
    near, mirrored = np.nonzero(correlation > _ALIGNABLE)
    shift = shift[near, mirrored]
    place = np.stack([np.ones_like(shift), shift], axis=2)
    place, correlation = _align(halves[0][near], _turn(halves[1][near], mirrored), place, _COARSE_STEPS)
    good = correlation > _ALIGNED
    near, place, second = near[good], place[good], _turn(second[near[good]], mirrored[good])
    place[:, :, 1] *= 2
    place, _ = _align(first[near], second, place, _FINE_STEPS)
    agreeing = _agreement_in_place(_without_margin(first[near]), _without_margin(_lay(second, place)))
    lost = (np.abs(place - np.float32([1, 0])) > _FARTHEST).any(axis=(1, 2))
    np.maximum.at(found, near, np.where(lost, 0, agreeing))
    return found


def _edges(pictures: np.ndarray, coarse: float = _COARSE) -> np.ndarray:
    """What has neither light nor noise in it, float32 (n, S, S): a difference of Gaussian blurs."""
    return _blur(pictures, _FINE) - _blur(pictures, coarse)


def _blur(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; as matrix products, since that is some times faster for pictures this small."""
    count, size, _ = pictures.shape
    weights = _blur_weights(size, sigma)
    across = (pictures.reshape(-1, size) @ weights).reshape(count, size, size)
    down = across.transpose(0, 2, 1).reshape(-1, size) @ weights
    return down.reshape(count, size, size).transpose(0, 2, 1)


@cache
def _blur_weights(size: int, sigma: float) -> np.ndarray:
    """float32 (size, size); column j has what each pixel of a line gives to pixel j."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=1).astype(np.float32)


def _halve(pictures: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    rows = pictures[:, ::2] + pictures[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) / 4


def _turn(pictures: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Pictures, some of them mirrored."""
    return np.where(mirrored[:, None, None] == 1, pictures[:, :, ::-1], pictures)


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
    common, total = 2 * _blur(one * other, _NEIGHBOURHOOD), _blur(one**2 + other**2, _NEIGHBOURHOOD)
    places = np.where(usable, (common + _FAINT) / (total + _FAINT), np.inf).reshape(len(one), np.prod(one.shape[1:]))
    worst = (_WORST_PLACES * usable.sum(axis=(1, 2))).astype(np.int64)
    return np.sort(places, axis=1)[np.arange(len(places)), worst]


def _first_look(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where second as it is, and mirrored, looks most like the middle of first.

    That is the correlation there (n, 2), and the shift, float32 (n, 2, down/across).
    """
    margin = first.shape[1] // 8
    inner = _edges(first, _FIRST_COARSE)[:, margin:-margin, margin:-margin]
    cut = slice(margin - _REACH, _REACH - margin)
    around = _edges(second, _FIRST_COARSE)[:, cut, cut]
    windows = sliding_window_view(around, inner.shape[1:], axis=(1, 2))
    count, shifts = windows.shape[:2]
    # Edges are smooth: every other pixel will do.
    windows, inner = windows[..., ::2, ::2].reshape(count, shifts**2, -1), inner[:, ::2, ::2]
    both = np.stack([inner, inner[:, :, ::-1]], axis=3).reshape(count, -1, 2)
    energy = np.einsum("nwp,nwp->nw", windows, windows) * (inner**2).sum(axis=(1, 2))[:, None]
    correlation = (windows @ both) / np.sqrt(np.maximum(energy, 1e-6))[:, :, None]
    shift = np.stack(np.divmod(correlation.argmax(axis=1), shifts), axis=2).astype(np.float32) - _REACH
    shift[:, 1, 1] *= -1  # it was the first picture that was turned
    return correlation.max(axis=1), shift


def _lay(pictures: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Each picture (n, S, S), read at scale * u + shift, u from its middle; ``place`` (n, down/across, scale/shift)."""
    size = pictures.shape[1]
    middle = np.float32((size - 1) / 2)
    from_middle = np.arange(size, dtype=np.float32) - middle
    weights = tents(place[:, :, :1] * from_middle + place[:, :, 1:] + middle, size)
    return weights[:, 0] @ pictures @ weights[:, 1].transpose(0, 2, 1)


def _align(first: np.ndarray, second: np.ndarray, place: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Improve the places at which second lies over first, by Gauss-Newton steps (Lucas and Kanade, 1981).

    Edges are compared, of what is left without the margin, lest a border that a shift brought in reach into it. The
    gain of one picture over the other is solved for along with scale and shift.

    Returns:
        The places, and the correlation (n,) before the last step.
    """
    size = first.shape[1]
    from_middle = _without_margin(np.arange(size, dtype=np.float32)[None, :, None].repeat(size, 2) - (size - 1) / 2)
    pixels = from_middle.size
    target = _edges(_without_margin(first)).reshape(len(first), pixels, 1)
    strength = np.linalg.norm(target, axis=1)[:, 0]
    for _ in range(steps):
        laid = _edges(_without_margin(_lay(second, place)))
        down, across = np.gradient(laid, axis=(1, 2))
        y, x = from_middle, from_middle.transpose(0, 2, 1)
        terms = (down * y, down, across * x, across, laid, np.ones_like(laid))
        slopes = np.stack(terms, axis=1).reshape(len(first), len(terms), pixels)
        normal, common = slopes @ slopes.transpose(0, 2, 1), slopes @ target
        correlation = common[:, 4, 0] / np.maximum(strength * np.sqrt(normal[:, 4, 4]), 1e-6)
        # A trace of damping, for pictures with edges in one direction only.
        damping = 1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + np.float32(1e-6)
        solved = np.linalg.solve(normal + damping * np.eye(len(terms), dtype=np.float32), common)[:, :, 0]
        step = solved[:, :4] / np.maximum(solved[:, 4:5], 0.1)
        place = place + np.clip(step.reshape(-1, 2, 2), -_LONGEST_STEP, _LONGEST_STEP)
    return place, correlation


def tents(places: np.ndarray, size: int, width: float = 1.0) -> np.ndarray:
    """Weights of linear interpolation at ``places`` (..., S) of a line: (..., S, size); 0 off its ends."""
    distance = places[..., None] - np.arange(size, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(distance) / np.float32(width))
