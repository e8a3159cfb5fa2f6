"""HRNet (Wang et al., TPAMI 2020) as segmentation uses it."""

from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from .timm import TimmBackbone


@BACKBONE_REGISTRY.register()
class HRNet(TimmBackbone):
    """The four branches of an HRNet as res2 ... res5, configured by MODEL.TIMM.

    timm implements the network for classification. Segmentation takes the branches themselves instead of the wider maps
    of the classifier, and resizes bilinearly where branches are fused.
    """

    @configurable
    def __init__(self, *, name: str = "hrnet_w48", **kwargs):
        """
        Args:
            name: one of timm's HRNets.
            kwargs: see TimmBackbone.

        Raises:
            ValueError: timm has no such HRNet.
        """
        if not name.startswith("hrnet_"):
            raise ValueError(f'MODEL.TIMM.NAME is {name!r}: HRNet expects one of timm\'s, such as "hrnet_w48"')
        super().__init__(name=name, feature_location="", out_indices=(1, 2, 3, 4), **kwargs)
        for module in self.body.modules():
            if isinstance(module, nn.Upsample):
                module.mode, module.align_corners = "bilinear", False
