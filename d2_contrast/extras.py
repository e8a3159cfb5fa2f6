"""Packages that only an extra of d2_contrast installs."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError):
    """A package is missing; the message names the extra that installs it."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module of a package that is not required, where it is used.

    Args:
        module: its full name, such as "scipy.io".
        extra: the extra of pyproject.toml that installs the package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f'{package} is not installed: run `pip install "d2_contrast[{extra}]"`', name=package
        ) from None
