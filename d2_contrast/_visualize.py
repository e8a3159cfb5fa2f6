"""Imported first by what draws pictures or measures features, to name the extra where its packages are missing."""

from .extras import import_extra

for package in ("matplotlib", "scipy", "sklearn"):
    import_extra(package, "visualize")
