"""Pictures of the embedded dataset: textured regions (stuff) under geometric shapes (things).

A region is told by its pattern and a thing by its form alone: colours and shading are drawn at random and carry no
information on which region or thing it is (things are just more vivid than regions). Each form comes from about 8 to
100 pixels across, things hide one another, and their frequencies have a long tail.
"""

import colorsys
from collections.abc import Callable

import numpy as np

IGNORE = 255
SIZE = 128  # height and width of an image, pixels
SPLITS = ("train", "val")
VERSION = 5  # counts up when pictures change

STUFF = ("plain", "stripes", "checks", "dots")
# Chance of a thing class to be in an image, before occlusion.
THINGS = {
    "disc": 0.60,
    "square": 0.52,
    "triangle": 0.45,
    "cross": 0.38,
    "ring": 0.30,
    "star": 0.13,
    "moon": 0.13,
    "heart": 0.13,
}
RARE = ("star", "moon", "heart")
CLASSES = (*STUFF, *THINGS)
COLORS = (
    (196, 188, 172), (128, 152, 178), (148, 172, 128), (206, 166, 122),
    (31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189),
    (255, 127, 14), (246, 216, 48), (23, 190, 207), (227, 88, 150),
)  # fmt: skip


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside a form, from the signed distance in pixels (negative inside)."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _polygon(points: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Signed distance to a polygon with (N, 2) corners: distance to the nearest edge, negative inside."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full(x.shape, np.inf)
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
            dx, dy = bx - ax, by - ay
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
            nearest = np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)
            crosses = (ay > y) != (by > y)  # even-odd rule; a horizontal edge is never crossed
            inside ^= crosses & (x < ax + (y - ay) * dx / (dy if dy else 1.0))
        return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)

    return distance


def _ngon(radii: list[float], turn: float = 0.0) -> np.ndarray:
    angle = 2 * np.pi * (np.arange(len(radii)) / len(radii) + turn) - np.pi / 2
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = 2 * np.pi * np.arange(32) / 32
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 17 - (0, 0.1)


_ARM = 0.34
# Signed distances of forms of radius about 1 around the origin.
FORMS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "triangle": _polygon(_ngon([1.1, 1.1, 1.1])),
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 1.0, np.abs(y) - _ARM), np.maximum(np.abs(x) - _ARM, np.abs(y) - 1.0)
    ),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.26,
    "star": _polygon(_ngon([1.15, 0.47] * 5)),
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.82 - np.hypot(x - 0.55, y)),
    "heart": _polygon(_heart()),
}


def _pattern(kind: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Mixing weight of two colours in [0, 1]; x and y are in pixels along the axes of the pattern."""
    if kind == "plain":
        wave = 0.5 * np.sin(0.1 * np.pi * (x + y) / period)  # hardly changes over the picture
    else:
        u, v = np.sin(2 * np.pi * x / period), np.sin(2 * np.pi * y / period)
        # Times the period: steep enough for an edge of about a pixel.
        wave = {"stripes": u, "checks": u * v, "dots": u + v - 0.9}[kind] * period
    return np.clip(0.5 + 0.5 * wave, 0.0, 1.0)


def _paint(
    rng: np.random.RandomState,
    kind: str,
    y: np.ndarray,
    x: np.ndarray,
    saturation: tuple[float, float],
    contrast: float,
) -> np.ndarray:
    """Colour every pixel with a pattern of random colours, direction and period: (h, w, 3) in [0, 255]."""
    hue, strength, value = rng.random_sample(), rng.uniform(*saturation), rng.uniform(0.45, 0.95)
    other = value - contrast if value > 0.7 else value + contrast
    colors = [
        np.array(colorsys.hsv_to_rgb(hue + shift, strength, v)) * 255
        for shift, v in ((0.0, value), (rng.uniform(-0.06, 0.06), other))
    ]
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(8, 16), rng.uniform(0, 20)
    c, s = np.cos(angle), np.sin(angle)
    weight = _pattern(kind, c * x + s * y + phase, c * y - s * x + phase, period)[..., None]
    return colors[0] * (1 - weight) + colors[1] * weight


def _background(rng: np.random.RandomState, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two to four regions with wavy borders: image (H, W, 3) and train ids (H, W)."""
    kinds = rng.permutation(len(STUFF))[: 2 + rng.randint(3)]
    waves = rng.uniform(0, 2 * np.pi, (2, 2))
    warped_y = y + 5 * np.sin(x / 13 + waves[0, 0]) + 3 * np.sin(x / 7 + waves[0, 1])
    warped_x = x + 5 * np.sin(y / 13 + waves[1, 0]) + 3 * np.sin(y / 7 + waves[1, 1])
    seeds = rng.uniform(0, SIZE, (len(kinds), 2))
    region = np.argmin([np.hypot(warped_y - sy, warped_x - sx) for sy, sx in seeds], axis=0)
    paints = np.stack([_paint(rng, STUFF[k], y, x, (0.05, 0.35), contrast=0.25) for k in kinds])
    image = np.take_along_axis(paints, region[None, ..., None], axis=0)[0]
    return image, kinds[region].astype(np.uint8)


def _draw_thing(rng: np.random.RandomState, name: str, radius: float, image: np.ndarray, label: np.ndarray) -> None:
    """Draw one thing at a random place into image and label; it may reach over the edge by a third of its radius."""
    cy, cx = rng.uniform(4 + 0.7 * radius, SIZE - 4 - 0.7 * radius, 2)
    angle = rng.uniform(-0.1, 0.1)
    reach = int(1.3 * radius) + 3
    box = tuple(slice(max(0, int(c) - reach), min(SIZE, int(c) + reach)) for c in (cy, cx))
    y, x = np.mgrid[box].astype(float)
    c, s = np.cos(angle) / radius, np.sin(angle) / radius
    distance = radius * FORMS[name](c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx))

    shade = 0.35 * np.clip(1 - (distance + 1) / 4, 0, 1)[..., None]  # soft shadow around it
    outline = 0.45 * _coverage(np.abs(distance + 0.7) - 0.6)[..., None]
    body = _paint(rng, "plain", y, x, (0.6, 1.0), contrast=0.15) * (1 - outline)
    alpha = _coverage(distance)[..., None]
    image[box] = image[box] * (1 - shade) * (1 - alpha) + body * alpha
    label[box][distance <= 0] = CLASSES.index(name)


def draw(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture of the dataset; equal arguments give equal pictures, everywhere.

    Returns:
        image (SIZE, SIZE, 3) and label (SIZE, SIZE), both uint8.
    """
    # RandomState, not Generator: NumPy promises that its streams never change.
    rng = np.random.RandomState([VERSION, SPLITS.index(split), index])
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    image, label = _background(rng, y, x)

    things = [
        (4 * 12.5 ** rng.random_sample(2).mean(), name)  # radius, 4 to 50 pixels, medium ones most often
        for name, chance in THINGS.items()
        if rng.random_sample() < chance
        for _ in range(1 + (name in RARE) + rng.randint(4))
    ]
    # Large ones first, or else little would be left of the small ones; still they overlap.
    for radius, name in sorted(things, reverse=True):
        _draw_thing(rng, name, radius, image, label)

    image += rng.uniform(-8, 8, image.shape)
    margin, corner = rng.uniform(2, 5), 10.0
    half = SIZE / 2 - margin - corner
    offset = [np.maximum(np.abs(a - (SIZE - 1) / 2) - half, 0) for a in (y, x)]
    frame = np.hypot(*offset) - corner
    image = image * _coverage(frame)[..., None] + 24 * (1 - _coverage(frame)[..., None])
    label[frame > -0.5] = IGNORE
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), label
