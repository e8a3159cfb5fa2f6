"""One module per dataset: registration, metadata and label table. Files are read when one is loaded."""

from . import ade20k, cadis, camvid, cityscapes, folders, pascal_context, shapes

__all__ = ["ade20k", "cadis", "camvid", "cityscapes", "folders", "pascal_context", "shapes"]
