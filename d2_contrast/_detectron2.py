"""Imported first by whatever needs Detectron2, to say how to get it where it is missing."""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "This part of d2_contrast needs Detectron2, which is not installed. It has no package of its own on PyPI. "
        "From a clone of d2_contrast run `python tools/install_detectron2.py` (no compiler needed); elsewhere run "
        "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git` (compiles it). "
        "d2_contrast.contrast works without it.",
        name="detectron2",
    ) from None
