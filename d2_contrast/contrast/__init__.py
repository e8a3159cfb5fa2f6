"""Supervised dense contrastive learning over several scales; needs PyTorch alone.

The words, from a feature map to a loss:

    map         (N, C, h, w), of a batch of images
    scale       a map that is contrasted, by its name
    position    one of the N h w places of a map, of which each has a vector and a class
    embedding   the projected vector at a position
    group       the positions of a class, or of a class in one image: each gives equally many anchors
    anchor      the embedding at a position that was drawn, at unit length
    anchor set  the anchors of one scale, with their classes
    score       similarity of two anchors over the temperature; those of two sets form the score matrix
    tile, band  a part of the score matrix that is computed at once; a band has all its columns

``ContrastiveBranch`` does all of it for the maps of a network. Its parts stand alone as well: ``Projector`` makes
embeddings from maps, ``AnchorSampler`` draws anchor sets from embeddings, ``MultiScaleContrast`` computes the losses
from either, and ``supervised_info_nce`` is the loss of one or two sets. A ``ContrastMemory`` keeps vectors of earlier
batches to contrast with, as the methods do that the paper compares with. ``GradientBalance`` says how the gradients of
these losses join others at the maps.
"""

from .anchor_set import AnchorSet
from .branch import ContrastiveBranch
from .criterion import MultiScaleContrast
from .gradient_balance import GradientBalance
from .info_nce import supervised_info_nce
from .memory import AverageMemory, ClassRings, ContrastMemory, MinedMemory
from .projector import Projector
from .sampler import AnchorSampler, resize_labels
from .statistics import describe_anchors

__all__ = [
    "AnchorSampler",
    "AnchorSet",
    "AverageMemory",
    "ClassRings",
    "ContrastMemory",
    "ContrastiveBranch",
    "GradientBalance",
    "MinedMemory",
    "MultiScaleContrast",
    "Projector",
    "describe_anchors",
    "resize_labels",
    "supervised_info_nce",
]
