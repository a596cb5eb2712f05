"""PyTorch checkpoints to jcos: tables of names, checked both ways."""

from typing import Literal

Only = Literal["dit", "vae", "text", "vision"]
"""Parts of a model that can be converted alone."""
