"""Draw the embedded sample: small grey cartoon faces in seven expressions, packed into one zip.

Reads nothing; writes ``data/sample.zip`` with members ``<split>/<class>/<class>_<index>.jpg``. The same
arguments give the same file, byte for byte. No photograph and no person stands behind any of the faces.

A face is built from facial action units (AUs), the visible muscle actions of the Facial Action Coding
System (Ekman & Friesen 1978). An expression is a set of AUs (``PROTOTYPES``, after EMFACS, Friesen & Ekman
1983); each AU moves brows, lids, nose or mouth, and deepens wrinkles. Everything else about a face is chance:
who it is, where it looks, the light, the camera.

Run: ``python data/make_sample.py --help``
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

SPLITS = ("train", "val", "test")
PER_CLASS = (230, 45, 45)
SIZE_PX = 48
SUPERSAMPLING = 6  # drawn at 6 times the size without antialiasing, then reduced by a box filter
JPEG_QUALITY = 90
MIN_INTENSITY = 0.4  # of the full expression (1.0); weaker ones could not be told from neutral by anybody

# AU -> strength at full intensity. 1 inner brow raiser, 2 outer brow raiser, 4 brow lowerer, 5 upper lid
# raiser, 6 cheek raiser, 7 lid tightener, 9 nose wrinkler, 10 upper lip raiser, 12 lip corner puller,
# 15 lip corner depressor, 16 lower lip depressor, 17 chin raiser, 20 lip stretcher, 23 lip tightener,
# 24 lip pressor, 25 lips part, 26 jaw drop, 43 eyes drooping.
PROTOTYPES: dict[str, dict[int, float]] = {
    "angry": {4: 1.0, 5: 0.6, 7: 0.8, 23: 1.0},
    "disgust": {9: 1.0, 15: 0.7, 16: 0.8},
    "fear": {1: 0.9, 2: 0.6, 4: 0.6, 5: 0.9, 7: 0.3, 20: 1.0, 26: 0.5},
    "happy": {6: 0.9, 12: 1.0},
    "neutral": {},
    "sad": {1: 1.0, 4: 0.7, 15: 1.0},
    "surprise": {1: 1.0, 2: 1.0, 5: 0.8, 26: 1.0},
}
# AU -> (how often it joins in, strength): what EMFACS lists as variants of the same expression.
VARIANTS: dict[str, dict[int, tuple[float, float]]] = {
    "angry": {17: (0.3, 0.6), 24: (0.4, 0.8), 10: (0.15, 0.5)},
    "disgust": {10: (0.5, 0.7), 17: (0.3, 0.7), 4: (0.3, 0.4), 7: (0.3, 0.5)},
    "fear": {25: (0.5, 0.6)},
    "happy": {25: (0.6, 1.0), 26: (0.15, 0.4)},
    "neutral": {},
    "sad": {17: (0.5, 0.8), 43: (0.5, 0.8)},
    "surprise": {25: (0.4, 0.5)},
}
CLASS_NAMES = tuple(PROTOTYPES)
UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 20, 23, 24, 25, 26, 43)


@dataclass(frozen=True)
class Person:
    """Who is drawn. Lengths are in face units: 1 is half the height of a face; y points down."""

    skin: float  # grey value 0..255, as are hair, shirt
    hair: float
    shirt: float
    width: float
    jaw: float
    chin: float
    eye_x: float
    eye_y: float
    eye_w: float
    eye_h: float
    eye_tilt: float
    iris: float  # grey value
    brow_y: float
    brow_slope: float
    brow_thick: float
    nose_w: float
    nose_y: float
    mouth_y: float
    mouth_w: float
    mouth_bend: float  # corners at rest: above 0 they hang
    lips: float
    age: float  # 0..1, deepens wrinkles
    hair_style: str
    beard: str
    glasses: bool


def _person(rng: np.random.Generator) -> Person:
    """Draw a person by chance."""
    u = rng.uniform
    skin = u(95, 225)
    return Person(
        skin=skin,
        hair=u(15, min(skin - 40, 110)) if rng.random() < 0.75 else u(150, 235),
        shirt=u(20, 240),
        width=u(0.68, 0.82),
        jaw=u(0.70, 0.92),
        chin=u(0.94, 1.08),
        eye_x=u(0.29, 0.36),
        eye_y=u(-0.20, -0.10),
        eye_w=u(0.165, 0.210),
        eye_h=u(0.080, 0.115),
        eye_tilt=u(-0.03, 0.02),
        iris=u(20, 95),
        brow_y=u(-0.27, -0.21),
        brow_slope=u(-0.035, 0.025),
        brow_thick=u(0.028, 0.060),
        nose_w=u(0.11, 0.17),
        nose_y=u(0.19, 0.27),
        mouth_y=u(0.52, 0.60),
        mouth_w=u(0.27, 0.35),
        mouth_bend=u(-0.03, 0.035),
        lips=u(0.035, 0.075),
        age=rng.random(),
        hair_style=str(rng.choice(("short", "short", "fringe", "long", "long", "curly", "bald"))),
        beard=str(rng.choice(("none", "none", "none", "none", "stubble", "full", "moustache"))),
        glasses=bool(rng.random() < 0.15),
    )


def action_units(class_name: str, rng: np.random.Generator) -> dict[int, float]:
    """Return the strength of each AU (0 absent, 1 full) for one face of a class, by chance.

    The whole expression has one intensity, at least ``MIN_INTENSITY``; each of its AUs varies around it, and
    every face, a neutral one too, has a trace of muscle tone that means nothing.
    """
    intensity = rng.uniform(MIN_INTENSITY, 1.0)
    units = {unit: abs(rng.normal(0.0, 0.05)) for unit in UNITS}
    for unit, strength in PROTOTYPES[class_name].items():
        units[unit] += strength * intensity * rng.uniform(0.65, 1.15)
    for unit, (chance, strength) in VARIANTS[class_name].items():
        if rng.random() < chance:
            units[unit] += strength * intensity * rng.uniform(0.65, 1.15)
    return {unit: min(strength, 1.1) for unit, strength in units.items()}


class Canvas:
    """A supersampled grey picture that is drawn on in face units, seen from the head's pose."""

    def __init__(self, rng: np.random.Generator, background: float) -> None:
        """Take a pose by chance: roll, yaw, pitch, place and size in the frame."""
        self.side = SIZE_PX * SUPERSAMPLING
        self.image = Image.new("L", (self.side, self.side), int(background))
        self.draw = ImageDraw.Draw(self.image)
        self.roll, self.yaw, self.pitch = np.radians(rng.normal(0.0, (6.0, 10.0, 6.0)).clip(-18, 18))
        self.scale = self.side * rng.uniform(0.43, 0.49)
        self.origin = self.side * (np.array([0.5, 0.51]) + rng.uniform(-0.035, 0.035, 2))

    def project(self, points: np.ndarray, lift: float = 0.0) -> list[tuple[float, float]]:
        """Turn face units, float (N, 2), into pixels; ``lift`` is the height above the head's ellipsoid."""
        x, y = np.asarray(points, dtype=float).T
        z = 0.55 * np.sqrt(np.maximum(0.0, 1 - (x / 0.85) ** 2 - (y / 1.15) ** 2)) + lift
        x, z = x * np.cos(self.yaw) + z * np.sin(self.yaw), z * np.cos(self.yaw) - x * np.sin(self.yaw)
        y = y * np.cos(self.pitch) + z * np.sin(self.pitch)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        pixels = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) * self.scale + self.origin
        return list(map(tuple, pixels.tolist()))

    def fill(self, points: np.ndarray, tone: float, alpha: float = 1.0, lift: float = 0.0) -> None:
        """Fill a closed polygon, opaque or with ``alpha`` in 0..1."""
        self._paint(self.project(points, lift), tone, alpha, width_px=0)

    def line(self, points: np.ndarray, width: float, tone: float, alpha: float = 1.0, lift: float = 0.0) -> None:
        """Stroke an open curve; ``width`` in face units."""
        self._paint(self.project(points, lift), tone, alpha, width_px=max(1, round(width * self.scale)))

    def _paint(self, pixels: list[tuple[float, float]], tone: float, alpha: float, width_px: int) -> None:
        """Fill (width 0) or stroke; where it is translucent, through a mask no larger than the shape."""
        value = int(np.clip(tone, 0, 255))
        if alpha >= 0.99:
            _stroke(self.draw, pixels, value, width_px)
        elif alpha > 0.02:
            left, top = (int(min(axis)) - width_px - 1 for axis in zip(*pixels))
            right, bottom = (int(max(axis)) + width_px + 2 for axis in zip(*pixels))
            mask = Image.new("L", (right - left, bottom - top))
            shifted = [(x - left, y - top) for x, y in pixels]
            _stroke(ImageDraw.Draw(mask), shifted, int(255 * alpha), width_px)
            self.image.paste(value, (left, top, right, bottom), mask)

    def clipped(self, points: np.ndarray, inside: Image.Image) -> None:
        """Copy a picture of the canvas's size through a polygon."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self.project(points), fill=255)
        self.image.paste(inside, (0, 0), mask)


def _stroke(draw: ImageDraw.ImageDraw, pixels: list[tuple[float, float]], value: int, width_px: int) -> None:
    """Draw a polygon (width 0) or an open line."""
    if width_px:
        draw.line(pixels, fill=value, width=width_px, joint="curve")
    else:
        draw.polygon(pixels, fill=value)


def _smooth(points: Sequence[tuple[float, float]], closed: bool = False, steps: int = 8) -> np.ndarray:
    """Run a Catmull-Rom curve through control points."""
    p = np.array(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def _mirrored(half: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Complete an outline that is given from top to bottom on the right side only."""
    return [*half, *((-x, y) for x, y in reversed(half) if x > 1e-9)]


def _ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Outline of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _draw_head(canvas: Canvas, who: Person, au: dict[int, float], rng: np.random.Generator) -> None:
    """Draw shoulders, hair, ears and skin."""
    w, chin = who.width, who.chin + 0.13 * au[26]
    strands = [(rng.uniform(-1, 1), rng.uniform(-30, 30)) for _ in range(14)]
    if who.hair_style == "long":
        back = [(0, -1.22), (0.6 * w, -1.15), (1.22 * w, -0.6), (1.3 * w, 0.2), (1.4 * w, 1.1), (0, 1.3)]
        canvas.fill(_smooth(_mirrored(back), closed=True), who.hair * 0.85, lift=-0.2)
    if who.hair_style == "curly":
        for angle in np.linspace(np.pi, 2 * np.pi, 13):
            bump = _ellipse(1.05 * w * np.cos(angle), -0.35 + 0.72 * np.sin(angle), 0.24, 0.24)
            canvas.fill(bump, who.hair + rng.uniform(-12, 12), lift=-0.1)
    neck = _mirrored([(0, 0.6), (0.5 * w, 0.6), (0.55 * w, 1.15), (1.4, 1.3), (1.5, 1.9)])
    canvas.fill(np.array(neck), who.skin * 0.72, lift=-0.25)
    collar = _mirrored([(0, 1.34), (0.5 * w, 1.2), (1.7, 1.35), (1.7, 2)])
    canvas.fill(np.array(collar), who.shirt, lift=-0.25)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * w * 1.02, 0.0, 0.11, 0.19), who.skin * 0.86, lift=-0.2)
    outline = [(0, -1.04), (0.5 * w, -0.97), (0.9 * w, -0.66), (w, -0.2), (0.97 * w, 0.2)]
    outline += [(who.jaw * w, 0.62), (0.58 * who.jaw * w, 0.9 * chin), (0.24, chin), (0, chin + 0.02)]
    face = _smooth(_mirrored(outline), closed=True)
    canvas.line(np.concatenate([face, face[:2]]), 0.05, who.skin * 0.6)
    canvas.fill(face, who.skin)
    if who.beard in ("full", "stubble"):
        fuzz = [(0, 0.8), (0.14, 0.79), (0.38, 0.58), (0.9 * w, 0.12), (0.98 * w, 0.15)]
        fuzz += [*outline[5:8], (0, chin + 0.03)]
        canvas.fill(np.array(_mirrored(fuzz)), who.hair, alpha=0.85 if who.beard == "full" else 0.25)
    if who.hair_style == "bald":
        canvas.fill(_ellipse(-0.2, -0.8, 0.2, 0.09), min(255, who.skin * 1.25), alpha=0.5)
        return
    low, parting = (-0.52, 0.04) if who.hair_style == "fringe" else (-0.74, 0.08)
    cap = [(0, -1.2), (0.55 * w, -1.14), (1.02 * w, -0.8), (1.07 * w, -0.1), (0.97 * w, -0.15)]
    cap += [(0.88 * w, -0.5), (0.55 * w, low), (0, low - parting)]
    canvas.fill(_smooth(_mirrored(cap), closed=True), who.hair)
    for place, tint in strands:
        strand = _smooth([(place * 0.3 * w, -1.15), (place * 0.8 * w, -0.95), (place * 0.92 * w, low - 0.06)])
        canvas.line(strand, 0.03, who.hair + tint, alpha=0.6)


def _draw_eyes(canvas: Canvas, who: Person, au: dict[int, float], gaze: np.ndarray) -> None:
    """Draw eyeballs, lids, lashes and the wrinkles of cheek raiser and lid tightener."""
    t = np.linspace(-1, 1, 25)  # from the inner to the outer corner
    upper = who.eye_h + 0.075 * au[5] - 0.020 * au[7] - 0.012 * au[4] - 0.02 * au[6] - 0.045 * au[43]
    lower = 0.055 + 0.012 * au[5] - 0.040 * au[7] - 0.055 * au[6] - 0.03 * au[9] - 0.02 * au[12]
    slant = 0.05 * au[1] * min(1.0, au[4] + au[43])  # grief pulls the lid up at the inner end
    upper, iris = max(upper, 0.03), 0.092
    for side in (-1, 1):
        x = side * (who.eye_x + who.eye_w * t)
        axis = who.eye_y + who.eye_tilt * t
        top = axis - upper * (1 - np.abs(t) ** 2.4) + slant * t * (1 - t**2) * 1.5
        bottom = axis + np.maximum(lower * (1 - t**2), -upper * 0.55 * (1 - t**2))
        opening = np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]])
        socket = _ellipse(side * who.eye_x, who.eye_y - 0.02, who.eye_w * 1.25, 0.17)
        canvas.fill(socket, who.skin * 0.75, alpha=0.25 + 0.2 * who.age)
        eyeball = Image.new("L", canvas.image.size, int(min(250, 150 + 0.45 * who.skin)))
        pen = ImageDraw.Draw(eyeball)
        centre = np.array([side * who.eye_x, who.eye_y - 0.01]) + gaze
        for radius, tone, dx in ((iris, who.iris, 0.0), (iris * 0.5, 5, 0.0), (iris * 0.28, 250, -0.04)):
            disc = _ellipse(centre[0] + dx, centre[1] + dx, radius, radius)
            pen.polygon(canvas.project(disc), fill=int(tone))
        canvas.clipped(opening, eyeball)
        canvas.line(np.stack([x, top], 1), 0.045, min(40, who.hair))
        canvas.line(np.stack([x, bottom], 1), 0.02, who.skin * 0.5, alpha=0.6)
        crease = np.stack([x, top - 0.05 - 0.02 * au[5]], 1)[3:-2]
        canvas.line(crease, 0.02, who.skin * 0.6, alpha=0.35 + 0.3 * au[5])
        bag = np.stack([x * 0.98, bottom + 0.075 - 0.02 * au[6]], 1)[2:-2]
        canvas.line(bag, 0.025, who.skin * 0.6, alpha=min(0.8, 0.6 * au[6] + 0.45 * au[7] + 0.25 * who.age))
        for tilt in (-0.09, 0.0, 0.09):  # crow's feet
            start = side * (who.eye_x + who.eye_w * 1.15)
            foot = np.array([(start, who.eye_y + 0.4 * tilt), (start + side * 0.1, who.eye_y + tilt)])
            canvas.line(foot, 0.02, who.skin * 0.6, alpha=0.7 * au[6] * (0.4 + 0.6 * who.age))
        if who.glasses:
            rim = _ellipse(side * who.eye_x, who.eye_y + 0.03, who.eye_w * 1.35, 0.2)
            canvas.line(np.concatenate([rim, rim[:2]]), 0.03, 35, lift=0.05)
            bridge = [(side * (who.eye_x - who.eye_w * 1.35), who.eye_y), (0, who.eye_y - 0.03)]
            canvas.line(np.array(bridge), 0.03, 35, lift=0.05)


def _draw_brows(canvas: Canvas, who: Person, au: dict[int, float]) -> None:
    """Draw brows and the wrinkles of the forehead."""
    y = who.eye_y + who.brow_y + 0.02 * au[43]
    inner = -0.15 * au[1] + 0.10 * au[4] + 0.08 * au[9] + who.brow_slope
    middle = -0.08 * au[1] - 0.06 * au[2] + 0.10 * au[4] + 0.07 * au[9] - 0.03 + 0.3 * who.brow_slope
    peak = -0.02 * au[1] - 0.15 * au[2] + 0.06 * au[4] + 0.03 * au[9] - 0.025 - 0.5 * who.brow_slope
    outer = 0.01 * au[1] - 0.10 * au[2] + 0.02 * au[4] + 0.035 - who.brow_slope
    pinch = 0.05 * au[4] + 0.02 * au[9]
    tone = min(who.hair, who.skin * 0.55)
    for side in (-1, 1):
        spine = [(who.eye_x - 0.17 - pinch, y + inner), (who.eye_x - 0.05 - 0.6 * pinch, y + middle)]
        spine += [(who.eye_x + 0.10, y + peak), (who.eye_x + 0.22, y + outer)]
        spine = _smooth(spine) * (side, 1)
        taper = who.brow_thick * np.linspace(1.0, 0.35, len(spine))[:, None] * (0, 1)
        canvas.fill(np.concatenate([spine - taper, (spine + taper)[::-1]]), tone)
        frown = np.array([(0.045, y + 0.06 + inner * 0.5), (0.055, y - 0.06 + inner * 0.5)]) * (side, 1)
        canvas.line(frown, 0.03, who.skin * 0.5, alpha=0.75 * au[4] * (0.6 + 0.4 * who.age))
    for row in range(2):
        t = np.linspace(-1, 1, 15)
        lift = au[2] * (1 - t**2) * 0.05 - au[1] * (1 - au[2] * 0.8) * (1 - t**2) * 0.07
        line = np.stack([t * (0.42 if au[2] > 0.3 else 0.22), y - 0.17 - 0.11 * row - 0.05 * au[1] + lift], 1)
        strength = max(0.0, 0.9 * max(au[2], 0.8 * au[1]) * (0.35 + 0.65 * who.age))
        if who.hair_style != "fringe":
            canvas.line(line, 0.022, who.skin * 0.62, alpha=min(0.8, strength))


def _draw_nose(canvas: Canvas, who: Person, au: dict[int, float]) -> None:
    """Draw the nose, its wrinkles and the furrows from its wings to the mouth."""
    y, w = who.nose_y - 0.07 * au[9] - 0.02 * au[10], who.nose_w * (1 + 0.15 * au[9] + 0.1 * au[12])
    shade = who.skin * 0.62
    flank = [(0.02, who.eye_y), (0.03, y - 0.03), (w, y), (0.05, who.eye_y)]
    canvas.fill(np.array(flank), shade, alpha=0.35, lift=0.1)
    for side in (-1, 1):
        wing = _smooth([(w * 0.8, y - 0.1), (w, y - 0.02), (w * 0.75, y + 0.03), (w * 0.35, y + 0.02)])
        canvas.line(wing * (side, 1), 0.028, shade, alpha=0.8, lift=0.1)
        canvas.fill(_ellipse(side * w * 0.45, y + 0.02, 0.035, 0.02), who.skin * 0.35, lift=0.1)
        for row in range(3):
            fold = np.array([(0.0, -0.03), (0.11, 0.02)]) * (side, 1) + (0, who.eye_y + 0.06 + 0.075 * row)
            canvas.line(fold, 0.024, who.skin * 0.5, alpha=0.85 * au[9], lift=0.05)
        pull = 0.08 * au[12] + 0.05 * au[20]
        furrow = [(w + 0.03, y - 0.04), (w + 0.13 + pull, y + 0.12), (who.mouth_w + 0.06 + pull, y + 0.27)]
        depth = 0.75 * max(au[12], 0.7 * au[9], au[10]) + 0.25 * who.age * (1 + au[15])
        canvas.line(_smooth(furrow) * (side, 1), 0.028, who.skin * 0.6, alpha=min(0.85, depth))
        apple = _ellipse(side * (who.eye_x + 0.06), y - 0.02 - 0.05 * au[6], 0.16, 0.11)
        canvas.fill(apple, min(255, who.skin * 1.15 + 8), alpha=0.4 * au[6])


def _draw_mouth(canvas: Canvas, who: Person, au: dict[int, float]) -> None:
    """Draw lips, teeth, tongue and moustache."""
    t = np.linspace(-1, 1, 41)
    dome = (1 - t**2) * (1 - 0.5 * au[20]) + (1 - t**6) * 0.5 * au[20]  # a stretched mouth is squarish
    y = who.mouth_y - 0.02 * au[12] - 0.03 * au[17] + 0.05 * au[26] - 0.02 * au[10]
    half = 1 + 0.30 * au[12] + 0.32 * au[20] - 0.20 * au[23] - 0.10 * au[17]
    half = who.mouth_w * (half - 0.35 * au[26] * max(0.0, 1 - au[12] - au[20]))
    bend = who.mouth_bend - 0.20 * au[12] + 0.15 * au[15] + 0.06 * au[20] + 0.05 * au[17] + 0.03 * au[26]
    seam = y + bend * np.abs(t) ** 1.8 - 0.4 * bend
    rise = 0.04 * au[10] + 0.035 * au[16] + 0.035 * au[25] + 0.12 * au[26] + 0.03 * au[20]
    drop = 0.10 * au[16] + 0.07 * au[25] + 0.28 * au[26] + 0.06 * au[20]
    shut = max(0.0, 1 - 1.2 * max(au[23], au[24], au[17]) * (au[16] < 0.2))
    thick = who.lips * (1 - 0.65 * max(au[23], au[24]) - 0.3 * au[12] - 0.25 * au[20])
    gap_top, gap_bottom = seam - rise * shut * dome, seam + drop * shut * dome
    bow = 1 - 0.3 * np.exp(-((t / 0.16) ** 2))
    lip_top = gap_top - thick * (1 - np.abs(t) ** 2.2) * bow
    lip_bottom = gap_bottom + thick * (1.25 + 0.4 * au[17] + 0.5 * au[16]) * (1 - t**2)
    x, lip = half * t, who.skin * (0.66 if who.skin > 130 else 0.75)

    def band(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])

    if who.beard in ("full", "moustache"):
        top = np.minimum(lip_top - 0.01, who.nose_y + 0.2)
        canvas.fill(band(top - 0.09 * (1 - 0.6 * t**2), top + 0.03), who.hair, alpha=0.85)
    canvas.fill(band(lip_top, lip_bottom), lip)
    opening = gap_bottom - gap_top
    if opening.max() > 0.03:
        canvas.fill(band(gap_top, gap_bottom), 28)
        teeth = np.minimum(opening * 0.75, 0.03 + 0.05 * au[12] + 0.02 * au[10])
        canvas.fill(band(gap_top, gap_top + teeth), 238)
        if au[16] + au[20] > 0.4:
            canvas.fill(band(gap_bottom - np.minimum(opening * 0.35, 0.05), gap_bottom), 225)
        elif au[26] > 0.5:
            canvas.fill(_ellipse(0, float(gap_bottom[20]) - 0.04, half * 0.55, 0.035), 95)
    else:
        canvas.line(np.stack([x, seam], 1), 0.035, who.skin * 0.35)
    for side in (-1, 1):
        corner = [(half + 0.02, seam[-1]), (half + 0.07, seam[-1] + 0.09 * au[15])]
        canvas.line(np.array(corner) * (side, 1), 0.03, who.skin * 0.5, alpha=min(0.8, 0.7 * au[15] + 0.5 * au[12]))
    under = np.stack([x * 0.45, lip_bottom[20] + 0.05 - 0.035 * (1 - t**2) * au[17]], 1)
    canvas.line(under, 0.03, who.skin * 0.65, alpha=min(0.8, 0.25 + 0.6 * au[17]))


def _photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Reduce the drawing and give it light, blur, contrast and sensor noise; returns uint8 (48, 48)."""
    blurred = canvas.image.filter(ImageFilter.BoxBlur(SUPERSAMPLING * rng.uniform(0.0, 0.45)))
    image = np.asarray(blurred.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX), dtype=np.float64)
    axis = np.linspace(-1, 1, SIZE_PX)
    x, y = np.meshgrid(axis, axis)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.4)
    image *= 1 + strength * np.clip(x * np.cos(angle) + y * np.sin(angle), -1, 1) - 0.12 * (x**2 + y**2)
    image = 128 + (image - 128) * rng.uniform(0.75, 1.2) + rng.uniform(-12, 35)
    image += rng.normal(0.0, 1.0, image.shape) * rng.uniform(2.0, 7.0)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_face(class_name: str, split: str, index: int, seed: int = 0) -> np.ndarray:
    """Draw one face.

    The face depends on these arguments alone, not on what was drawn before it.

    Args:
        class_name: One of ``CLASS_NAMES``.
        split: One of ``SPLITS``.
        index: Number of the face within its class and split, from 0.
        seed: Seed of the whole sample.

    Returns:
        Grey image, uint8 (48, 48).
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), CLASS_NAMES.index(class_name), index])
    who, au = _person(rng), action_units(class_name, rng)
    gaze = rng.normal((0.0, 0.02 * au[43]), (0.025, 0.010))
    canvas = Canvas(rng, background=rng.uniform(10, 245))
    for _ in range(rng.integers(0, 4)):  # something out of focus behind the head
        x, y, rx, ry = rng.uniform((-1.2, -1.2, 0.2, 0.2), (1.2, 1.2, 0.7, 1.2))
        canvas.fill(_ellipse(x, y, rx, ry), rng.uniform(0, 255), alpha=0.5)
    _draw_head(canvas, who, au, rng)
    _draw_nose(canvas, who, au)
    _draw_mouth(canvas, who, au)
    _draw_eyes(canvas, who, au, gaze)
    _draw_brows(canvas, who, au)
    return _photograph(canvas, rng)


def member_name(class_name: str, split: str, index: int) -> str:
    """Return a face's name inside the zip."""
    return f"{split}/{class_name}/{class_name}_{index:04d}.jpg"


def encode(image: np.ndarray) -> bytes:
    """Encode a grey image, uint8 (H, W), as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def write_sample(path: Path, per_class: Sequence[int] = PER_CLASS, seed: int = 0) -> int:
    """Write the zip at ``path``, whole or not at all, and return the number of faces in it.

    Args:
        path: Zip file to write; its folder is made if missing.
        per_class: Faces of each class in train, val and test.
        seed: Seed of the whole sample.
    """
    faces = [
        (member_name(name, split, index), name, split, index)
        for split, count in zip(SPLITS, per_class, strict=True)
        for name in CLASS_NAMES
        for index in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for member, name, split, index in tqdm(sorted(faces), desc="drawing", unit="face"):
            # A fixed time and system, so that the bytes don't tell when and where they were made.
            info = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, encode(draw_face(name, split, index, seed)), zipfile.ZIP_STORED)
    os.replace(partial, path)
    return len(faces)


def write_sheet(path: Path, columns: int = 12, seed: int = 0) -> None:
    """Write a picture with the first test faces of each class, one class a row, at twice their size."""
    rows = [np.hstack([draw_face(name, "test", i, seed) for i in range(columns)]) for name in CLASS_NAMES]
    sheet = Image.fromarray(np.vstack(rows))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the sample."""
    parser = argparse.ArgumentParser(
        description="Draw cartoon faces in seven expressions and pack them into a zip of class folders.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here / "sample.zip", help="zip file to write")
    parser.add_argument(
        "--per-class",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=PER_CLASS,
        help="faces of each class in each split",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other faces")
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of test faces (a .png)")
    args = parser.parse_args(argv)
    if min(args.per_class) < 1 or args.seed < 0:
        parser.error("--per-class takes numbers from 1, --seed from 0")
    count = write_sample(args.out, args.per_class, args.seed)
    print(f"{args.out}: {count} faces, {args.out.stat().st_size / 1e6:.2f} MB")
    if args.sheet:
        write_sheet(args.sheet, seed=args.seed)


if __name__ == "__main__":
    main()
