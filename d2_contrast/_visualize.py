"""Imported first by modules that draw pictures or measure features: names the extra if its packages are missing."""

from .extras import import_extra

for package in ("jinja2", "matplotlib", "scipy", "sklearn"):
    import_extra(package, "visualize")
