"""Multi-scale and cross-scale contrastive losses for semantic segmentation with Detectron2.

Importing this package registers nothing and needs torch alone, so that ``d2_contrast.contrast`` can be used in any
trainer. ``d2_contrast.config``, ``d2_contrast.modeling`` and ``d2_contrast.data`` register their parts with Detectron2.
What is imported from here by name, such as ``from d2_contrast import Segmentor``, is loaded at that moment, with
everything registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from .config import add_contrast_config
    from .prediction import Segmentation, Segmentor

__version__ = "0.1.0"

__all__ = ["Segmentation", "Segmentor", "add_contrast_config", "get_config"]

# Where names are that are loaded when they are asked for.
_LAZY = {"Segmentation": "prediction", "Segmentor": "prediction", "add_contrast_config": "config"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def _register() -> None:
    """Register with Detectron2 what a config can ask for."""
    for part in ("modeling", "data"):
        import_module(f".{part}", __name__)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def get_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Return a config of this project by its name, such as "shapes/uper_r18_contrast", or of a file by its path.

    What it asks for is registered with Detectron2 then.

    Args and Raises as :func:`d2_contrast.config.load_config`, and ImportError where Detectron2 is missing.
    """
    _register()
    from .config import load_config

    return load_config(name, overrides)
