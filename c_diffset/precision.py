"""The precisions that a model can work in."""

from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
