"""Imported first by this package, to name the extra where a package that it needs is missing."""

from ..extras import import_extra

for package in ("matplotlib", "sklearn"):
    import_extra(package, "visualize")
