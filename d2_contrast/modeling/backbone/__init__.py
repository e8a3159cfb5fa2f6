"""Backbones that give res2 ... res5, and pyramids over them. Importing this package registers them."""

from .hrnet import HRNet
from .smp import SMPBackbone
from .swin import Swin
from .timm import TimmBackbone
from .uper_fpn import UPerFPN
from .vit import ViTPyramid

__all__ = ["HRNet", "SMPBackbone", "Swin", "TimmBackbone", "UPerFPN", "ViTPyramid"]
