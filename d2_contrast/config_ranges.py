"""What every config key may be: its type, its range, and how keys fit together.

RANGES has an entry for each key that a run of this project reads, ``UNUSED`` names those of Detectron2 that it does
not read; together they are complete. RELATIONS are between keys. Whoever adds keys, or values such as another
optimizer, adds them here, too: ``RANGES["SOLVER.OPTIMIZER"] = Choice("SGD", "AdamW", "Lion")``.

Names of registered parts and datasets are not here: they are compared with the registries when a run is set up.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from detectron2.config import CfgNode

from .config_files import flatten
from .errors import shown


class Range(Protocol):
    """A set of values: tells whether it has one, and what it has as text, for one value and for a list of them."""

    @property
    def many(self) -> str: ...

    def __contains__(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    """Finite numbers between bounds, ``least`` and ``most`` included, ``above`` and ``below`` not.

    Args:
        least, most, above, below: the bounds; None for none.
        whole: integers alone.
        odd: odd integers alone.
        infinite: infinity, too.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    odd: bool = False
    infinite: bool = False

    def __contains__(self, value: object) -> bool:
        kinds = int if self.whole or self.odd else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        if value == math.inf:
            return self.infinite
        return (
            -math.inf < value < math.inf
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.odd or value % 2 == 1)
        )

    def __str__(self) -> str:
        return f"a{'n' * self.odd} {self._describe('number')}"

    @property
    def many(self) -> str:
        return self._describe("numbers")

    def _describe(self, noun: str) -> str:
        low = f"of at least {self.least:.10g}" if self.least is not None else ""
        low = f"above {self.above:.10g}" if self.above is not None else low
        high = f"at most {self.most:.10g}" if self.most is not None else ""
        high = f"below {self.below:.10g}" if self.below is not None else high
        bounds = " and ".join(filter(None, [low, high]))
        kind = "odd " if self.odd else "whole " * self.whole
        return f"{kind}{noun}{' ' * bool(bounds)}{bounds}{' or inf' * self.infinite}"


class Choice:
    """One of some values."""

    def __init__(self, *values: object):
        self.values = values

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(own) and value == own for own in self.values)

    def __str__(self) -> str:
        *others, last = map(repr, self.values)
        return f"{', '.join(others)} or {last}" if others else last

    @property
    def many(self) -> str:
        return f"values of {self}"


@dataclass(frozen=True)
class Text:
    """Text of more than spaces.

    Args:
        expected: what it is.
        pattern: regular expression that the whole of it matches.
        empty: it may be the empty text.
    """

    expected: str = "a name"
    pattern: str = r".*\S.*"
    empty: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or "\0" in value:
            return False
        return (self.empty and not value) or re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.expected + ", or ''" * self.empty

    @property
    def many(self) -> str:
        return f"{self.expected.removeprefix('a ')}s"


@dataclass(frozen=True)
class ListOf:
    """Lists or tuples of one kind of values.

    Args:
        item: what each entry is.
        length: how many there are; None for any number.
        least: smallest number of them.
        order: "distinct", "increasing", or "ordered" if an entry may repeat the one before, but not fall below it.
    """

    item: Range
    length: int | None = None
    least: int = 0
    order: str = ""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not all(entry in self.item for entry in value):
            return False
        if len(value) < self.least or (self.length is not None and len(value) != self.length):
            return False
        pairs = list(zip(value, value[1:]))
        return {
            "": True,
            "distinct": all(entry not in value[:i] for i, entry in enumerate(value)),
            "increasing": self.order != "increasing" or all(a < b for a, b in pairs),
            "ordered": self.order != "ordered" or all(a <= b for a, b in pairs),
        }[self.order]

    def __str__(self) -> str:
        return f"a list of {self._describe()}"

    @property
    def many(self) -> str:
        return f"lists of {self._describe()}"

    def _describe(self) -> str:
        number = f"{self.least} or more " if self.least else ""
        number = f"{self.length} " if self.length is not None else number
        order = {
            "": "",
            "distinct": ", none of them twice",
            "increasing": ", each larger than the one before",
            "ordered": ", none smaller than the one before",
        }
        items = f"({self.item.many})" if "," in self.item.many else self.item.many
        return f"{number}{items}{order[self.order]}"


class Row:
    """Lists or tuples with a kind of value for each place."""

    def __init__(self, *items: Range):
        self.items = items

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) != len(self.items):
            return False
        return all(entry in item for entry, item in zip(value, self.items))

    def __str__(self) -> str:
        return f"[{'; '.join(map(str, self.items))}]"

    @property
    def many(self) -> str:
        return f"entries {self}"


class Either:
    """Values of one of several ranges."""

    def __init__(self, *ranges: Range):
        self.ranges = ranges

    def __contains__(self, value: object) -> bool:
        return any(value in one for one in self.ranges)

    def __str__(self) -> str:
        return ", or ".join(map(str, self.ranges))

    @property
    def many(self) -> str:
        return f"values, each {self}"


class CheckedElsewhere:
    """Any value: another part of the project checks it, more closely than is possible here."""

    many = "values"

    def __contains__(self, value: object) -> bool:
        return True


FLAG = Choice(True, False)
NAME = Text()
NAMES = ListOf(NAME, least=1, order="distinct")


ITERATIONS = Number(whole=True, least=0, most=10**9)
SOME_ITERATIONS = Number(whole=True, least=1, most=10**9)
PIXELS = Number(whole=True, least=1, most=65500)
PIXELS_OR_0 = Number(whole=True, least=0, most=65500)
HEIGHT_AND_WIDTH = ListOf(PIXELS, length=2)
CHANNELS = Number(whole=True, least=1, most=65536)
FEW = Number(whole=True, least=1, most=1024)  # counts such as blocks, heads, dilations
SHARE = Number(least=0, most=1)
RATE = Number(least=0, below=1)  # of what is dropped or skipped
LOSS_WEIGHT = Number(least=0, most=10000)
FACTOR = Number(above=0, most=1000)
FACTORS = ListOf(FACTOR, length=2, order="ordered")
NORM = Choice("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def _section(prefix: str, **ranges: Range) -> dict[str, Range]:
    return {f"{prefix}.{key}": value for key, value in ranges.items()}


RANGES: dict[str, Range] = {
    "VERSION": Choice(2),
    "OUTPUT_DIR": Text("the name of a folder"),
    "SEED": Number(whole=True, least=-(2**31), most=2**31 - 1),
    "CUDNN_BENCHMARK": FLAG,
    "FLOAT32_PRECISION": Choice("", "highest", "high", "medium"),
    "VIS_PERIOD": ITERATIONS,
    "PROCESS_GROUP_TIMEOUT": Number(above=0, most=10**7),
    **_section(
        "MODEL",
        DEVICE=Text("a device such as 'cpu', 'cuda' or 'cuda:1'", r"cpu|mps|meta|(cuda|xpu|hpu|npu)(:\d{1,3})?"),
        META_ARCHITECTURE=NAME,
        WEIGHTS=Text("the name of a file", empty=True),
        WEIGHTS_ALLOW_PICKLE=FLAG,
        CHANNELS_LAST=FLAG,
        COMPILE=FLAG,
        PIXEL_MEAN=ListOf(Number(least=-1000, most=1000), length=3),
        PIXEL_STD=ListOf(Number(above=0, most=1000), length=3),
    ),
    **_section(
        "MODEL.BACKBONE",
        NAME=NAME,
        FREEZE_AT=Number(whole=True, least=0, most=5),
        PRETRAINED=FLAG,
        NORM=Choice("BN", "SyncBN", "FrozenBN"),
    ),
    **_section("MODEL.TIMM", NAME=NAME, OUTPUT_STRIDE=Choice(8, 16, 32), DROP_PATH=RATE),
    **_section(
        "MODEL.SWIN",
        EMBED_DIM=CHANNELS,
        DEPTHS=ListOf(FEW, length=4),
        NUM_HEADS=ListOf(FEW, length=4),
        WINDOW_SIZE=Number(whole=True, least=1, most=64),  # its tables grow with the fourth power
        DROP_PATH=RATE,
        CHECKPOINTING=FLAG,
        PRETRAINED_NAME=NAME,
    ),
    **_section("MODEL.SMP", NAME=NAME, DROP_PATH=RATE),
    **_section("MODEL.VIT", OUT_CHANNELS=CHANNELS, NORM=NORM),
    **_section(
        "MODEL.RESNETS",
        DEPTH=Choice(18, 34, 50, 101, 152),
        OUT_FEATURES=NAMES,
        NUM_GROUPS=FEW,
        NORM=NORM,
        WIDTH_PER_GROUP=CHANNELS,
        STRIDE_IN_1X1=FLAG,
        RES4_DILATION=Choice(1, 2),
        RES5_DILATION=Choice(1, 2, 4),
        RES5_MULTI_GRID=ListOf(FEW, length=3),
        RES2_OUT_CHANNELS=CHANNELS,
        STEM_OUT_CHANNELS=CHANNELS,
        STEM_TYPE=Choice("basic", "deeplab"),
        DEFORM_ON_PER_STAGE=ListOf(FLAG, length=4),
        DEFORM_MODULATED=FLAG,
        DEFORM_NUM_GROUPS=FEW,
    ),
    **_section(
        "MODEL.FPN",
        IN_FEATURES=ListOf(NAME, order="distinct"),
        OUT_CHANNELS=CHANNELS,
        NORM=NORM,
        FUSE_TYPE=Choice("sum", "avg"),
    ),
    **_section(
        "MODEL.UPER",
        BOTTOM_UP=NAME,
        IN_FEATURES=NAMES,
        OUT_CHANNELS=CHANNELS,
        POOL_SCALES=ListOf(FEW, least=1),
        NORM=NORM,
    ),
    **_section(
        "MODEL.SEM_SEG_HEAD",
        NAME=NAME,
        IN_FEATURES=NAMES,
        NUM_CLASSES=Number(whole=True, least=2, most=65535),
        IGNORE_VALUE=Number(whole=True, least=0, most=65535),
        CONVS_DIM=CHANNELS,
        COMMON_STRIDE=Choice(1, 2, 4, 8, 16, 32),
        NORM=NORM,
        DROPOUT=RATE,
        LOSS_WEIGHT=Number(above=0, most=10000),
        LOSS_TYPE=Choice("cross_entropy", "hard_pixel_mining"),
        PROJECT_FEATURES=ListOf(NAME, order="distinct"),
        PROJECT_CHANNELS=ListOf(CHANNELS),
        ASPP_CHANNELS=CHANNELS,
        ASPP_DILATIONS=ListOf(FEW, length=3),
        ASPP_DROPOUT=RATE,
        USE_DEPTHWISE_SEPARABLE_CONV=FLAG,
    ),
    **_section(
        "MODEL.OCR",
        KEY_CHANNELS=CHANNELS,
        AUX_IN_FEATURES=ListOf(NAME, order="distinct"),
        AUX_CHANNELS=CHANNELS,
        AUX_KERNEL_SIZE=Number(whole=True, odd=True, least=1, most=99),
        AUX_LOSS_WEIGHT=LOSS_WEIGHT,
    ),
    **_section(
        "MODEL.AUX_HEAD",
        NAME=Text("the name of a head", empty=True),
        IN_FEATURES=NAMES,
        CONVS_DIM=CHANNELS,
        DROPOUT=RATE,
        NORM=NORM,
        LOSS_WEIGHT=LOSS_WEIGHT,
    ),
    **_section(
        "MODEL.PIXEL_LOSS",
        NAME=NAME,
        AUX_NAME=Text("the name of a pixel loss", empty=True),
        CLASS_WEIGHTS=ListOf(LOSS_WEIGHT),
        OHEM_THRESHOLD=Number(above=0, most=1),
        OHEM_MIN_KEPT=Number(whole=True, least=1, most=10**9),
        RMI_WEIGHT=SHARE,
        RMI_STRIDE=FEW,
        RMI_RADIUS=FEW,
    ),
    **_section(
        "MODEL.CONTRAST",
        ENABLED=FLAG,
        IN_FEATURES=NAMES,
        SCALE_WEIGHTS=ListOf(LOSS_WEIGHT),
        CROSS_SCALE_PAIRS=ListOf(ListOf(NAME, length=2, order="distinct"), order="distinct"),
        CROSS_SCALE_WEIGHTS=ListOf(LOSS_WEIGHT),
        LOSS_WEIGHT_MULTI_SCALE=LOSS_WEIGHT,
        LOSS_WEIGHT_CROSS_SCALE=LOSS_WEIGHT,
        WARMUP_ITERS=ITERATIONS,
        DECAY_ITERS=ITERATIONS,
        TEMPERATURE=Number(least=0.002, most=100),
        SAMPLER=Choice("class", "image_class"),
        MAX_ANCHORS=Number(whole=True, least=2, most=10**7),
        MAX_PER_GROUP=Number(whole=True, least=0, most=10**7),
        MIN_PER_GROUP=Number(whole=True, least=1, most=10**7),
        GATHER=FLAG,
        TF32=FLAG,
        PROJECT=Choice("dense", "anchors"),
        PROJECTOR_LAYERS=Number(whole=True, least=0, most=16),
        EMBEDDING_DIM=CHANNELS,
        NORM=NORM,
        LOG_PERIOD=ITERATIONS,
    ),
    **_section("MODEL.CONTRAST.BALANCE", SHARE=LOSS_WEIGHT, REMOVE_CONFLICT=FLAG, LOG_PERIOD=ITERATIONS),
    **_section(
        "MODEL.CONTRAST.MEMORY",
        METHOD=Choice("", "pixels", "regions", "pixels+regions", "averages"),
        PIXELS=Number(whole=True, least=1, most=10**7),
        REGIONS=Number(whole=True, least=1, most=10**7),
    ),
    **_section(
        "INPUT",
        FORMAT=Choice("RGB", "BGR"),
        MIN_SIZE_TRAIN=ListOf(PIXELS_OR_0, least=1),
        MIN_SIZE_TRAIN_SAMPLING=Choice("choice"),
        MAX_SIZE_TRAIN=PIXELS,
        MIN_SIZE_TEST=PIXELS_OR_0,
        MAX_SIZE_TEST=PIXELS,
        MAX_PIXELS=Number(whole=True, least=1, most=2**40),
        SCALE_RANGE=FACTORS,
        ASPECT_RANGE=FACTORS,
        RANDOM_FLIP=Choice("horizontal", "vertical", "none"),
        ALBUMENTATIONS=Text("the name of a file", empty=True),
    ),
    **_section(
        "INPUT.CROP",
        ENABLED=FLAG,
        TYPE=Choice("absolute"),
        SIZE=HEIGHT_AND_WIDTH,
        SINGLE_CATEGORY_MAX_AREA=Number(above=0, most=1),
    ),
    **_section(
        "INPUT.COLOR_JITTER",
        ENABLED=FLAG,
        BRIGHTNESS=FACTORS,
        CONTRAST=FACTORS,
        SATURATION=ListOf(Number(least=0, most=1000), length=2, order="ordered"),
        HUE=Number(least=0, most=0.5),
    ),
    **_section(
        "INPUT.BLUR", PROB=SHARE, RADIUS=ListOf(Number(whole=True, least=0, most=1000), length=2, order="ordered")
    ),
    **_section(
        "DATASETS",
        TRAIN=ListOf(NAME, order="distinct"),
        TEST=ListOf(NAME, order="distinct"),
        FOLDERS=CheckedElsewhere(),  # where they are registered
    ),
    **_section(
        "DATALOADER",
        NUM_WORKERS=Number(whole=True, least=0, most=1024),
        ASPECT_RATIO_GROUPING=FLAG,
        SAMPLER_TRAIN=Choice(
            "TrainingSampler",
            "RepeatFactorTrainingSampler",
            "RandomSubsetTrainingSampler",
            "WeightedTrainingSampler",
            "WeightedCategoryTrainingSampler",
        ),
        REPEAT_THRESHOLD=SHARE,
        REPEAT_SQRT=FLAG,
        RANDOM_SUBSET_RATIO=Number(above=0, most=1),
        ON_ERROR=Choice("raise", "skip"),
    ),
    **_section(
        "SOLVER",
        OPTIMIZER=Choice("SGD", "AdamW"),
        MAX_ITER=SOME_ITERATIONS,
        IMS_PER_BATCH=Number(whole=True, least=1, most=10**6),
        REFERENCE_WORLD_SIZE=Number(whole=True, least=0, most=10**6),
        MAX_IMS_PER_PROCESS=Number(whole=True, least=0, most=10**6),
        ACCUMULATION_STEPS=Number(whole=True, least=1, most=10**6),
        BASE_LR=Number(above=0, most=1000),
        BASE_LR_END=Number(least=0, most=1000),
        HEAD_LR_FACTOR=FACTOR,
        BIAS_LR_FACTOR=Number(least=0, most=1000),
        MOMENTUM=RATE,
        NESTEROV=FLAG,
        WEIGHT_DECAY=Number(least=0, most=10),
        WEIGHT_DECAY_NORM=Either(Number(least=0, most=10), Choice(None)),
        WEIGHT_DECAY_BIAS=Either(Number(least=0, most=10), Choice(None)),
        NO_DECAY_NAMES=ListOf(NAME),
        LR_SCHEDULER_NAME=Choice("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
        GAMMA=Number(above=0, most=1),
        STEPS=ListOf(SOME_ITERATIONS, order="increasing"),
        NUM_DECAYS=ITERATIONS,
        POLY_LR_POWER=Number(least=0, most=10),
        POLY_LR_CONSTANT_ENDING=SHARE,
        WARMUP_FACTOR=SHARE,
        WARMUP_ITERS=ITERATIONS,
        WARMUP_METHOD=Choice("linear", "constant"),
        RESCALE_INTERVAL=FLAG,
        CHECKPOINT_PERIOD=SOME_ITERATIONS,
        MAX_TO_KEEP=Either(Choice(0), Number(whole=True, least=2, most=10**9)),
        NON_FINITE=Choice("stop", "skip"),
        NON_FINITE_MAX_IN_ROW=SOME_ITERATIONS,
    ),
    **_section(
        "SOLVER.CLIP_GRADIENTS",
        ENABLED=FLAG,
        CLIP_TYPE=Choice("value", "norm", "full_model"),
        CLIP_VALUE=Number(above=0, most=10**6),
        NORM_TYPE=Number(above=0, most=1000, infinite=True),
    ),
    **_section("SOLVER.AMP", ENABLED=FLAG, DTYPE=Choice("float16", "bfloat16")),
    **_section("SOLVER.EMA", ENABLED=FLAG, DECAY=Number(above=0, below=1)),
    **_section(
        "TEST",
        EVAL_PERIOD=ITERATIONS,
        BEST_METRIC=Text("the name of a metric", empty=True),
        EXPECTED_RESULTS=ListOf(Row(Choice("sem_seg"), NAME, Number(), Number(least=0))),
        MAX_DEVICE_GIB=Number(least=0, most=10**6),
    ),
    **_section("TEST.AMP", ENABLED=FLAG),
    **_section(
        "TEST.AUG", ENABLED=FLAG, FLIP=FLAG, SCALES=ListOf(Number(above=0, most=100), least=1, order="distinct")
    ),
    **_section("TEST.SLIDING_WINDOW", ENABLED=FLAG, SIZE=HEIGHT_AND_WIDTH, STRIDE=HEIGHT_AND_WIDTH),
    **_section("TEST.PRECISE_BN", ENABLED=FLAG, NUM_ITER=SOME_ITERATIONS),
    **_section("WANDB", PROJECT=Text("a name", empty=True), NAME=Text("a name", empty=True)),
    **_section(
        "VISUALIZE",
        NUM_IMAGES=Number(whole=True, least=0, most=1000),
        TSNE_POINTS=Number(whole=True, least=0, most=10**6),
    ),
}

# Keys and sections of Detectron2 for detection, or for what this project has its own keys for.
UNUSED = (
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "GLOBAL.HACK",
    "INPUT.MASK_FORMAT",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.MASK_ON",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
    "TEST.AUG.MAX_SIZE",
    "TEST.AUG.MIN_SIZES",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.KEYPOINT_OKS_SIGMAS",
)


def check_config(cfg: CfgNode) -> None:
    """Check the values of a config, and how they fit together.

    Keys without an entry in RANGES pass: they are in UNUSED, or another project added them.

    Raises:
        ValueError: a value is out of range or contradicts another; the message names the keys, their values and what is
            expected, for each problem.
    """
    _check(cfg, "", (_contrast, _heads, _backbones, _input, _solver, _test))


def check_contrast(cfg: CfgNode) -> None:
    """As :func:`check_config`, for MODEL.CONTRAST alone, as if it were enabled: programs of others check nothing."""
    _check(cfg, "MODEL.CONTRAST.", (_enabled_contrast,))


def _check(cfg: CfgNode, prefix: str, relations: Iterable[Callable[[CfgNode], Iterator[str]]]) -> None:
    problems = [
        f"{key} is {shown(value)}: expected {RANGES[key]}"
        for key, value in flatten(cfg).items()
        if key.startswith(prefix) and key in RANGES and value not in RANGES[key]
    ]
    # Relations are between values that make sense by themselves.
    if problems := problems or [problem for relation in relations for problem in relation(cfg)]:
        raise ValueError("; ".join(problems))


def is_unused(key: str) -> bool:
    """Whether UNUSED has a key or a section that it is in."""
    return any(key == own or key.startswith(f"{own}.") for own in UNUSED)


def _contrast(cfg: CfgNode) -> Iterator[str]:
    if cfg.MODEL.CONTRAST.ENABLED:
        yield from _enabled_contrast(cfg)


def _enabled_contrast(cfg: CfgNode) -> Iterator[str]:
    contrast, key = cfg.MODEL.CONTRAST, "MODEL.CONTRAST"
    for names, weights in (("IN_FEATURES", "SCALE_WEIGHTS"), ("CROSS_SCALE_PAIRS", "CROSS_SCALE_WEIGHTS")):
        if len(contrast[names]) != len(contrast[weights]):
            yield (
                f"{key}.{weights} is {shown(contrast[weights])}: expected one weight for each of {key}.{names}, "
                f"{shown(contrast[names])}"
            )
    for name in contrast.IN_FEATURES:
        if len(set(name.split("+"))) < len(name.split("+")):
            yield f"{key}.IN_FEATURES has {name!r}: expected each map once in it"
    for pair in contrast.CROSS_SCALE_PAIRS:
        if not set(pair) <= set(contrast.IN_FEATURES):
            yield (
                f"{key}.CROSS_SCALE_PAIRS has {list(pair)}: expected two of {key}.IN_FEATURES, "
                f"{shown(contrast.IN_FEATURES)}"
            )
    if contrast.MEMORY.METHOD:
        where = f"with {key}.MEMORY.METHOD {contrast.MEMORY.METHOD!r}"
        if contrast.GATHER:
            yield f"{key}.GATHER is True: expected False {where}, which all processes fill and share"
        if contrast.PROJECT != "dense":
            yield f"{key}.PROJECT is {contrast.PROJECT!r}: expected 'dense' {where}, which stores other vectors, too"


GROUPS = 32  # of Detectron2's "GN"
# Where the norm "GN" of a section has to share out channels: if a part is in use, by keys of MODEL.
GROUPED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("UPerFPN", "UPER.NORM", ("UPER.OUT_CHANNELS",)),
    ("build_resnet_fpn_backbone", "FPN.NORM", ("FPN.OUT_CHANNELS",)),
    ("auxiliary head", "AUX_HEAD.NORM", ("AUX_HEAD.CONVS_DIM",)),
    ("contrast", "CONTRAST.NORM", ("CONTRAST.EMBEDDING_DIM",)),
    *(
        (head, "SEM_SEG_HEAD.NORM", tuple(f"SEM_SEG_HEAD.{key}" for key in keys))
        for head, keys in {
            "FCNHead": ("CONVS_DIM",),
            "UPerHead": ("CONVS_DIM",),
            "HRNetHead": ("CONVS_DIM",),
            "OCRHead": ("CONVS_DIM",),
            "SemSegFPNHead": ("CONVS_DIM",),
            "ASPPHead": ("ASPP_CHANNELS",),
            "DeepLabV3Head": ("CONVS_DIM", "ASPP_CHANNELS"),
            "DeepLabV3PlusHead": ("CONVS_DIM", "ASPP_CHANNELS"),
        }.items()
    ),
    ("OCRHead", "SEM_SEG_HEAD.NORM", ("OCR.KEY_CHANNELS", "OCR.AUX_CHANNELS")),
)


def ungrouped_channels(cfg: CfgNode) -> Iterator[str]:
    """Numbers of channels that the norm "GN" cannot share out, a sentence each.

    Not a relation of :func:`check_config`, since a base config may have one key and not yet the other.
    """
    model, values = cfg.MODEL, flatten(cfg.MODEL)
    has_layers = model.CONTRAST.ENABLED and model.CONTRAST.PROJECTOR_LAYERS > 1
    parts = {model.BACKBONE.NAME, model.SEM_SEG_HEAD.NAME}
    parts |= {"contrast"} if has_layers else set()
    parts |= {"auxiliary head"} if model.AUX_HEAD.NAME else set()
    for part, norm, widths in GROUPED:
        for width in widths:
            if part in parts and values[norm] == "GN" and values[width] % GROUPS:
                yield f"MODEL.{width} is {values[width]}: expected a multiple of {GROUPS} where MODEL.{norm} is 'GN'"


def _heads(cfg: CfgNode) -> Iterator[str]:
    head, weights = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS
    if weights and (len(weights) != head.NUM_CLASSES or not any(weights)):
        yield (
            f"MODEL.PIXEL_LOSS.CLASS_WEIGHTS is {shown(weights)}: expected a weight for each of the {head.NUM_CLASSES} "
            "classes, not all of them 0, or [] for equal weights"
        )
    if head.NAME == "DeepLabV3PlusHead" and len(head.PROJECT_CHANNELS) != len(head.PROJECT_FEATURES):
        yield (
            f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {shown(head.PROJECT_CHANNELS)}: expected one number for each of "
            f"MODEL.SEM_SEG_HEAD.PROJECT_FEATURES, {shown(head.PROJECT_FEATURES)}"
        )


def _backbones(cfg: CfgNode) -> Iterator[str]:
    names = [cfg.MODEL.BACKBONE.NAME]
    if names == ["UPerFPN"]:
        names.append(cfg.MODEL.UPER.BOTTOM_UP)
    if names == ["UPerFPN"] * 2:
        yield "MODEL.UPER.BOTTOM_UP is 'UPerFPN': expected the backbone below that pyramid, such as 'TimmBackbone'"
    swin, resnets = cfg.MODEL.SWIN, cfg.MODEL.RESNETS
    if "Swin" in names:
        for stage, heads in enumerate(swin.NUM_HEADS):
            if swin.EMBED_DIM * 2**stage % heads:
                yield (
                    f"MODEL.SWIN.NUM_HEADS is {shown(swin.NUM_HEADS)}: expected divisors of the channels of the four "
                    f"stages, {[swin.EMBED_DIM * 2**i for i in range(4)]} with MODEL.SWIN.EMBED_DIM {swin.EMBED_DIM}"
                )
                return
    if any(re.match(r"build_resnet_", name) for name in names):
        stages = ["stem", "res2", "res3", "res4", "res5"]
        if not set(resnets.OUT_FEATURES) <= set(stages):
            yield f"MODEL.RESNETS.OUT_FEATURES is {shown(resnets.OUT_FEATURES)}: expected names from {stages}"
        plain = {
            "RES2_OUT_CHANNELS": 64,
            "NUM_GROUPS": 1,
            "RES5_DILATION": 1,
            "DEFORM_ON_PER_STAGE": [False] * 4,
        }
        for key, value in plain.items() if resnets.DEPTH < 50 else ():
            if resnets[key] != value:
                yield (
                    f"MODEL.RESNETS.{key} is {shown(resnets[key])}: expected {value} where MODEL.RESNETS.DEPTH is "
                    f"{resnets.DEPTH}"
                )


def _input(cfg: CfgNode) -> Iterator[str]:
    sizes = cfg.INPUT
    for least, most in (("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN"), ("MIN_SIZE_TEST", "MAX_SIZE_TEST")):
        shorter = sizes[least] if isinstance(sizes[least], int) else max(sizes[least])
        if shorter > sizes[most]:
            yield f"INPUT.{most} is {sizes[most]}: expected at least INPUT.{least}, {shown(sizes[least])}"
    loader = cfg.DATALOADER
    if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler" and not loader.REPEAT_THRESHOLD:
        yield (
            "DATALOADER.REPEAT_THRESHOLD is 0: expected a share of the images above 0 where DATALOADER.SAMPLER_TRAIN "
            "is 'RepeatFactorTrainingSampler', which otherwise repeats nothing"
        )


def _solver(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.MOMENTUM is 0: expected a number above 0 where SOLVER.NESTEROV is True"
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        yield f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}: expected at most SOLVER.BASE_LR, {solver.BASE_LR}"
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}: expected a multiple of SOLVER.REFERENCE_WORLD_SIZE, "
            f"{solver.REFERENCE_WORLD_SIZE}"
        )
    if "bias" in solver.NO_DECAY_NAMES and (solver.WEIGHT_DECAY_BIAS is not None or solver.BIAS_LR_FACTOR != 1):
        yield (
            "SOLVER.NO_DECAY_NAMES has 'bias', for which SOLVER.WEIGHT_DECAY_BIAS or SOLVER.BIAS_LR_FACTOR is set: "
            "expected one or the other, such as WEIGHT_DECAY_BIAS 0.0"
        )


def _test(cfg: CfgNode) -> Iterator[str]:
    window = cfg.TEST.SLIDING_WINDOW
    if window.ENABLED and any(stride > size for stride, size in zip(window.STRIDE, window.SIZE)):
        yield (
            f"TEST.SLIDING_WINDOW.STRIDE is {list(window.STRIDE)}: expected at most TEST.SLIDING_WINDOW.SIZE, "
            f"{list(window.SIZE)}, as windows would leave gaps"
        )
    if cfg.TEST.PRECISE_BN.ENABLED and cfg.SOLVER.EMA.ENABLED:
        yield (
            "TEST.PRECISE_BN.ENABLED is True: expected False where SOLVER.EMA.ENABLED is True, whose average is "
            "evaluated, with its own statistics"
        )
    if cfg.TEST.PRECISE_BN.ENABLED and cfg.MODEL.CONTRAST.ENABLED and cfg.MODEL.CONTRAST.MEMORY.METHOD:
        yield (
            "TEST.PRECISE_BN.ENABLED is True: expected False with MODEL.CONTRAST.MEMORY.METHOD, as its passes would be "
            "stored in the memory"
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        yield (
            f"TEST.EXPECTED_RESULTS is {shown(cfg.TEST.EXPECTED_RESULTS)}: expected [] unless DATASETS.TEST has one "
            "dataset"
        )
