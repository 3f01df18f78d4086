"""What a picture looks like beside what it shows: numbers that shift when cameras, light or senders change."""

import numpy as np

# What ``Predictor`` says of each picture when it is to describe it: the first two of the pixels that the model sees.
DESCRIPTORS = ("brightness", "sharpness", "face_size")


def measure_brightness(images: np.ndarray) -> np.ndarray:
    """Mean grey value of pictures, uint8 (N, H, W, C) -> float64 (N,), from 0 to 255."""
    return np.array([_grey(image).mean() for image in images])


def measure_sharpness(images: np.ndarray) -> np.ndarray:
    """Variance of the Laplacian of pictures, uint8 (N, H, W, C) -> float64 (N,); blurred ones have little.

    J. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", 2000.
    """
    return np.array([_laplacian(_grey(image)).var() for image in images])


def _grey(image: np.ndarray) -> np.ndarray:
    """Float64 (H, W) of a picture of any channels."""
    grey: np.ndarray = image.astype(np.float64).mean(axis=2)
    return grey


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """The four neighbours less the pixel four times, (H, W); beyond the edge it goes on."""
    rows, columns = (np.pad(grey, pad, "edge") for pad in (((1, 1), (0, 0)), ((0, 0), (1, 1))))
    around: np.ndarray = rows[:-2] + rows[2:] + columns[:, :-2] + columns[:, 2:] - 4 * grey
    return around
