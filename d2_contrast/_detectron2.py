"""Imported first by modules that need Detectron2: says how to get it if it is missing or too old."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

HOW = (
    "From a clone of d2_contrast run `python tools/install_detectron2.py` (no compiler needed); elsewhere run "
    "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git` (compiles it)"
)

try:
    import detectron2
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "This part of d2_contrast needs Detectron2, which is not installed. It has no package of its own on PyPI. "
        f"{HOW}. d2_contrast.contrast works without it.",
        name="detectron2",
    ) from None


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Ignore what newer libraries say about the code of Detectron2 and fvcore, which its users cannot change."""
    with warnings.catch_warnings():
        for start in (r"`torch\.jit\.script", r"torch\.meshgrid", r"Importing from timm\.models\.layers"):
            warnings.filterwarnings("ignore", message=start)
        yield


def find_missing() -> list[str]:
    """What this project needs and the installed Detectron2 lacks. Its version does not tell: 0.6 since 2021."""
    with without_deprecations():
        from detectron2 import modeling, solver

    needed = {
        "SwinTransformer in detectron2.modeling": hasattr(modeling, "SwinTransformer"),
        "padding_constraints of backbones": hasattr(modeling.Backbone, "padding_constraints"),
        "lr_factor_func in detectron2.solver": (
            "lr_factor_func" in inspect.signature(solver.get_default_optimizer_params).parameters
        ),
    }
    return [what for what, is_there in needed.items() if not is_there]


if _missing := find_missing():
    raise ImportError(
        f"The Detectron2 in {detectron2.__path__[0]} is too old: it has no {', no '.join(_missing)}. So is the release "
        "0.6 of 2021; the copy on PyPI and the main branch, which call themselves 0.6 as well, are not. Uninstall it: "
        f"`pip uninstall detectron2`. {HOW}",
        name="detectron2",
    )
