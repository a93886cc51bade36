"""The colours of maps: fixed scales, the same for every image, so that pictures can be compared with each other."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ColourScale:
    """Colours at equal steps from `low` to `full`, linear between them; values beyond have the first or last colour."""

    colours: tuple[tuple[int, int, int], ...]
    full: float
    unit: str = ""
    low: float = 0.0

    def paint(self, values: np.ndarray) -> np.ndarray:
        """A map H x W as uint8 H x W x 3."""
        knots = np.linspace(self.low, self.full, len(self.colours))
        channels = [np.interp(values, knots, channel) for channel in zip(*self.colours, strict=True)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)

    @property
    def open(self) -> bool:
        """Whether values can be larger than the upper end."""
        return bool(self.unit) or self.full < 1

    @property
    def top(self) -> str:
        """What stands at the upper end of a colour bar; only what is bounded ends there."""
        return f"{self.full:g}{f' {self.unit} and more' if self.unit else ''}"


# viridis at quarters: violet is no confidence, yellow is full confidence
CONFIDENCE = ColourScale(((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), 1.0)
# inferno at quarters: black is no error; the error is the mean over r, g, b in 8-bit levels
ERROR = ColourScale(((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)), 64.0, "levels")
# the scale of each map that has a name in pictures and grids
SCALES = {"error": ERROR, "expected error": ERROR, "confidence": CONFIDENCE}
