"""Every config key that this project adds to Detectron2's, with its meaning, unit and default."""

import difflib
import logging
import re
from collections.abc import Sequence

from . import _detectron2  # noqa: F401 (a check, so it comes first)

# isort: split
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from .config_files import find_config, flatten, load_yaml, read_config
from .config_ranges import RANGES, ListOf, Number, check_config
from .errors import shorten

# Old names of keys, which load_config still reads.
RENAMED = {
    "MODEL.CONTRAST.MAX_PER_CLASS": "MODEL.CONTRAST.MAX_PER_GROUP",
    "MODEL.CONTRAST.MIN_PER_CLASS": "MODEL.CONTRAST.MIN_PER_GROUP",
}

logger = logging.getLogger(__name__)


def default_config() -> CN:
    """Return the complete default config: Detectron2's keys, its DeepLab project's and ours."""
    cfg = get_cfg()
    add_contrast_config(cfg)
    _add_defaults(cfg)
    return cfg


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CN:
    """Read a config file over the defaults.

    Args:
        config_file: a yaml file or the name of one of this project's, see :func:`.config_files.find_config`; its
            ``_BASE_`` files are read first. "" for the defaults alone.
        overrides: keys and values in turn, as on a command line.

    Raises:
        KeyError: a key does not exist; the message names it, where it stands and which keys are like it.
        ValueError: a value is out of its range (:mod:`.config_ranges`) or contradicts another one, a key on the
            command line has no value, a key is given under an old and a new name, or a file is no config.
        FileNotFoundError: there is no such file, nor a config of this name.
    """
    return _build(read_config(find_config(config_file)) if config_file else {}, config_file, overrides)


def parse_config(text: str, source: str, overrides: Sequence[str] = ()) -> CN:
    """Read the text of a config, such as a checkpoint holds, over the defaults.

    Args:
        text: yaml, without ``_BASE_``.
        source: where it comes from, for messages.
        overrides: as of :func:`load_config`.

    Raises:
        KeyError, ValueError: as of :func:`load_config`.
    """
    try:
        loaded = load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: its config cannot be read as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{source}: its config holds {loaded!r:.60}, expected keys with values")
    return _build(loaded, source, overrides)


def _build(loaded: dict, source: str, overrides: Sequence[str]) -> CN:
    _check_pairs(overrides)
    cfg = default_config()
    where = source
    try:
        _rename_old_keys(loaded, source)
        cfg.merge_from_other_cfg(CN(_like("", cfg, loaded)))
        where = "command line"
        keys = [_new_name(key, where) for key in overrides[::2]]
        current = flatten(cfg)
        values = [_like(key, current.get(key), value) for key, value in zip(keys, overrides[1::2])]
        cfg.merge_from_list([part for pair in zip(keys, values) for part in pair])
    except RecursionError:
        raise ValueError(f"{where}: expected sections that are not nested in themselves, as by a yaml anchor") from None
    except (KeyError, ValueError, AssertionError) as error:  # yacs raises any of them, file or command line
        raise _named(error, where, cfg) from None
    check_config(cfg)
    return cfg


def _named(error: Exception, where: str, cfg: CN) -> Exception:
    """The error of reading a config, with where the key stands and what is expected of its value."""
    message = str(error.args[0])
    if message.startswith("Non-existent"):
        similar = difflib.get_close_matches(message.split()[-1], list(flatten(cfg)), cutoff=0.7)
        hint = f"; similar keys: {', '.join(similar)}" if similar else ""
        return KeyError(f"{where}: {message}{hint}")
    mismatch = re.fullmatch(
        r"Type mismatch .* with values \((.*) vs\. (.*)\) for config key: (\S+)", message, re.DOTALL
    )
    if mismatch is None:
        return ValueError(f"{where}: {message}")
    own, value, key = mismatch.groups()
    expected = RANGES.get(key, f"a value like {own}" if key in flatten(cfg) else "a section with keys")
    return ValueError(f"{where}: {key} is {shorten(' '.join(value.split()))}: expected {expected}")


def _like(key: str, default: object, value: object) -> object:
    """A value from a file or the command line, with 1 and inf as floats where the default is one, in sections too.

    So are the texts of lists of such numbers: yaml takes 5e-1 for text.
    """
    if isinstance(default, CN) and isinstance(value, dict):
        return {
            name: _like(f"{key}.{name}" if key else name, default.get(name), entry) for name, entry in value.items()
        }
    allowed = RANGES.get(key)
    if isinstance(value, list) and isinstance(allowed, ListOf):
        has_floats = isinstance(allowed.item, Number) and not allowed.item.whole
        return [_to_float(entry) if has_floats and isinstance(entry, str) else entry for entry in value]
    return _to_float(value) if isinstance(default, float) and not isinstance(value, bool) else value


def _to_float(value: object) -> object:
    """A number, or text that is one, as a float; anything else as it is."""
    try:
        return float(re.sub(r"\.(?=inf$)", "", str(value)))  # yaml writes .inf
    except ValueError:
        return value


def _check_pairs(overrides: Sequence[str]) -> None:
    for key in overrides[::2]:
        if key.startswith("-"):
            raise ValueError(f"{key} stands among keys and values: options come before them")
        if key.endswith((".yaml", ".yml")):
            raise ValueError(f"{key} stands in the place of a key: a config is named by --config-file {key}")
        if "=" in key:
            raise ValueError(f"{key} is no key: keys and values are separate, as in {key.replace('=', ' ', 1)}")
    if len(overrides) % 2:
        raise ValueError(f"{overrides[-1]} has no value: expected keys and values in turn")


def _new_name(key: str, where: str) -> str:
    if key not in RENAMED:
        return key
    logger.warning("%s: %s is now called %s", where, key, RENAMED[key])
    return RENAMED[key]


def _rename_old_keys(loaded: dict, where: str) -> None:
    """Bring what a file sets under old names of keys to the new ones."""
    for old in RENAMED:
        node, _, key = old.rpartition(".")
        section: object = loaded
        for name in node.split("."):
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or key not in section:
            continue
        new = _new_name(old, where)
        new_key = new.rpartition(".")[2]
        if new_key in section:
            raise ValueError(f"{where}: {old} is an old name of {new}, and both are set: remove the old one")
        section[new_key] = section.pop(key)


def add_contrast_config(cfg: CN) -> None:
    """Add this project's keys to ``cfg``, which holds Detectron2's; and those of its DeepLab project if need be.

    No value that ``cfg`` has changes: configs of another project mean what they meant, also where it has keys of the
    same name.
    """
    if "POLY_LR_POWER" not in cfg.SOLVER:
        add_deeplab_config(cfg)
    ours = cfg.clone()
    _add_model(ours)
    _add_contrast(ours)
    _add_backbones(ours)
    _add_heads(ours)
    _add_input(ours)
    _add_solver(ours)
    _add_test(ours)
    _add_visualize(ours)
    _add_wandb(ours)
    _add_processes(ours)
    _add_missing(cfg, ours)
    for old, new in RENAMED.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def _add_missing(cfg: CN, others: CN) -> None:
    """Add the keys of ``others`` that ``cfg`` lacks, section by section."""
    for key, value in others.items():
        if key not in cfg:
            setattr(cfg, key, value)
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)


def _add_model(cfg: CN) -> None:
    """MODEL: how a ContrastiveSegmentor computes; results stay the same."""
    # Weights, images and maps in torch's memory format channels_last: faster for convolutions, see docs/performance.md.
    cfg.MODEL.CHANNELS_LAST = False
    # Compile the network by torch.compile for training and evaluation, which takes minutes at the start and needs a
    # compiler (a C++ compiler on CPUs, Triton on GPUs). docs/performance.md says what it gains, and where it does not.
    cfg.MODEL.COMPILE = False


def _add_contrast(cfg: CN) -> None:
    """MODEL.CONTRAST: the multi-scale and cross-scale losses (Eq. 3 and 4 of the paper)."""
    cfg.MODEL.CONTRAST = CN()
    # Off: the network is trained with its pixel losses alone.
    cfg.MODEL.CONTRAST.ENABLED = False
    # Names of the feature maps to contrast, among those that the backbone gives; "res2+res3" stands for two of them,
    # concatenated at the size of the first.
    cfg.MODEL.CONTRAST.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # w_s of Eq. 3, one for each of IN_FEATURES. The paper: 1, 0.7, 0.4, 0.1 for strides 4, 8, 16, 32.
    cfg.MODEL.CONTRAST.SCALE_WEIGHTS = [1.0, 0.7, 0.4, 0.1]
    # Pairs of IN_FEATURES for Eq. 4; anchors come from the first of a pair. [] turns the cross-scale loss off.
    cfg.MODEL.CONTRAST.CROSS_SCALE_PAIRS = [["res2", "res5"], ["res2", "res4"]]
    # w_ss' of Eq. 4, one for each of CROSS_SCALE_PAIRS.
    cfg.MODEL.CONTRAST.CROSS_SCALE_WEIGHTS = [1.0, 1.0]
    # Weights of the two sums in the total loss (lambda). 0.1 goes with backbones pretrained on ImageNet.
    cfg.MODEL.CONTRAST.LOSS_WEIGHT_MULTI_SCALE = 0.1
    cfg.MODEL.CONTRAST.LOSS_WEIGHT_CROSS_SCALE = 0.1
    # Both weights grow linearly from 0 over this many iterations; 0: they are constant.
    cfg.MODEL.CONTRAST.WARMUP_ITERS = 0
    # Both weights fall linearly to 0 at this iteration; 0: never.
    cfg.MODEL.CONTRAST.DECAY_ITERS = 0
    # BALANCE: how the gradients of these losses join those of the heads at the maps of IN_FEATURES, of which the head
    # itself has to read one or more.
    cfg.MODEL.CONTRAST.BALANCE = CN()
    # Scale the gradient of these losses so that its norm is this share of that of the pixel losses, in every step. The
    # weights above then only matter among the terms, and for the projectors. 0: leave it as the weights make it.
    cfg.MODEL.CONTRAST.BALANCE.SHARE = 0.0
    # If the gradient of these losses points against that of the pixel losses, remove its component along the latter.
    cfg.MODEL.CONTRAST.BALANCE.REMOVE_CONFLICT = False
    # Log the norms of both gradients, as the weights make them, their ratio and their cosine. Iterations between two
    # logs; 0: never.
    cfg.MODEL.CONTRAST.BALANCE.LOG_PERIOD = 0
    cfg.MODEL.CONTRAST.TEMPERATURE = 0.1
    # Let GPUs that can compute the matrix products of the losses in TF32: faster, but exponentials of scores are off by
    # up to 0.2 %. False: float32, whatever torch is set to.
    cfg.MODEL.CONTRAST.TF32 = False
    # Anchors are drawn from groups, equally many from each. A group is a class in the batch ("class": the paper), or a
    # class in one image ("image_class": the authors' code).
    cfg.MODEL.CONTRAST.SAMPLER = "class"
    # Upper bound on the number of anchors of a scale, per process; with GATHER, of all processes together.
    cfg.MODEL.CONTRAST.MAX_ANCHORS = 10000
    # Upper bound on the anchors that a group gives at a scale; 0: no limit.
    cfg.MODEL.CONTRAST.MAX_PER_GROUP = 2500
    # A group with fewer positions than this at a scale gives no anchors there.
    cfg.MODEL.CONTRAST.MIN_PER_GROUP = 5
    # Share anchors among all processes, so that the loss sees the whole batch.
    cfg.MODEL.CONTRAST.GATHER = False
    # What is projected in training: "dense" (the paper: the whole map, of which positions are drawn) or "anchors"
    # (positions are drawn first, and only their vectors are projected: the losses take a little less time and a third
    # of the memory. Norms then take their statistics over the anchors instead of the map).
    cfg.MODEL.CONTRAST.PROJECT = "dense"
    # The projector of each scale: hidden layers (Conv1x1-ReLU-norm; paper 2, authors' code 1), then a linear map to
    # EMBEDDING_DIM. The first hidden layer keeps the width of the map, others have EMBEDDING_DIM.
    cfg.MODEL.CONTRAST.PROJECTOR_LAYERS = 2
    cfg.MODEL.CONTRAST.EMBEDDING_DIM = 256
    cfg.MODEL.CONTRAST.NORM = "BN"
    # MEMORY: contrast the anchors of each scale with vectors of earlier batches instead of each other, as methods do
    # that the paper compares with. Heads of this project alone.
    cfg.MODEL.CONTRAST.MEMORY = CN()
    # "" for none; "pixels", "regions" or "pixels+regions" (Wang et al., ICCV 2021: pixels and means of regions, of
    # which an anchor meets the hardest; anchors are drawn in equal parts from pixels that are predicted wrong and
    # right, and *_PER_GROUP count for each part of a class); "averages" (Hu et al., ICCV 2021: anchors are themselves
    # means of regions, in which what is hard counts more; SAMPLER, MAX_ANCHORS and *_PER_GROUP are not used).
    cfg.MODEL.CONTRAST.MEMORY.METHOD = ""
    # Vectors of pixels that are kept of each class. In the paper ten for each training image.
    cfg.MODEL.CONTRAST.MEMORY.PIXELS = 10000
    # Means of regions that are kept of each class. In the papers one for each training image.
    cfg.MODEL.CONTRAST.MEMORY.REGIONS = 1000
    # Iterations between two logs of the numbers of anchors and mean similarities of each scale; 0: never.
    cfg.MODEL.CONTRAST.LOG_PERIOD = 20


def _add_backbones(cfg: CN) -> None:
    # MODEL.WEIGHTS names a file: a checkpoint of a whole model, or the weights of a backbone from elsewhere (Swin,
    # HRNet, torchvision, timm, Detectron2). Files that can run code when they are read (.pkl, checkpoints that hold
    # more than tensors) are refused unless this is True.
    cfg.MODEL.WEIGHTS_ALLOW_PICKLE = False
    # Start from weights that timm downloads, by MODEL.TIMM.NAME or MODEL.SWIN.PRETRAINED_NAME, or
    # segmentation_models_pytorch by MODEL.SMP.NAME, unless MODEL.WEIGHTS names others.
    cfg.MODEL.BACKBONE.PRETRAINED = False
    # Normalisation of backbones that come with batch norm: "BN", "SyncBN" or "FrozenBN".
    cfg.MODEL.BACKBONE.NORM = "BN"

    # MODEL.TIMM, for MODEL.BACKBONE.NAME "TimmBackbone", "HRNet" and "ViTPyramid".
    cfg.MODEL.TIMM = CN()
    # Any model that timm can build with features_only=True; its last four feature maps become res2 ... res5. "name.tag"
    # chooses among its weights. For HRNet one of timm's HRNets, whose branches they are.
    cfg.MODEL.TIMM.NAME = "resnet18"
    # Stride of the coarsest feature map: 32, or 16 or 8 for models that timm can dilate.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    # Probability of skipping a residual branch in training (stochastic depth), at the deepest block.
    cfg.MODEL.TIMM.DROP_PATH = 0.0

    # MODEL.SWIN, for MODEL.BACKBONE.NAME "Swin": Swin-T by default.
    cfg.MODEL.SWIN = CN()
    # Channels of the first stage; blocks and attention heads of the four stages; side of the windows in tokens.
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Probability of skipping a residual branch in training (stochastic depth), at the deepest block.
    cfg.MODEL.SWIN.DROP_PATH = 0.3
    # Recompute blocks in the backward pass instead of keeping their activations: less memory, more time.
    cfg.MODEL.SWIN.CHECKPOINTING = False
    # The timm model of equal structure whose weights MODEL.BACKBONE.PRETRAINED downloads.
    cfg.MODEL.SWIN.PRETRAINED_NAME = "swin_tiny_patch4_window7_224.ms_in1k"

    # MODEL.VIT, for MODEL.BACKBONE.NAME "ViTPyramid": res2 ... res5 made from the last map of a plain Vision
    # Transformer of timm, such as MODEL.TIMM.NAME "vit_small_patch14_dinov2.lvd142m". NORM is that of this pyramid.
    cfg.MODEL.VIT = CN()
    cfg.MODEL.VIT.OUT_CHANNELS = 256
    cfg.MODEL.VIT.NORM = "LN"

    # MODEL.SMP, for MODEL.BACKBONE.NAME "SMPBackbone", which needs the extra "smp".
    cfg.MODEL.SMP = CN()
    # Any encoder that segmentation_models_pytorch has itself ("tu-..." are timm's: take "TimmBackbone"), such as
    # SegFormer's, "mit_b0" ... "mit_b5"; its last four feature maps become res2 ... res5.
    cfg.MODEL.SMP.NAME = "mit_b0"
    # Probability of skipping a residual branch in training (stochastic depth), at the deepest block. SegFormer's
    # encoders alone have it.
    cfg.MODEL.SMP.DROP_PATH = 0.0

    # MODEL.UPER, for MODEL.BACKBONE.NAME "UPerFPN": the pyramid of UPerNet over any backbone, giving p2 ... p5.
    cfg.MODEL.UPER = CN()
    # Name of the backbone below the pyramid, in Detectron2's registry of backbones.
    cfg.MODEL.UPER.BOTTOM_UP = "TimmBackbone"
    # Feature maps of that backbone, fine to coarse.
    cfg.MODEL.UPER.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.UPER.OUT_CHANNELS = 512
    # Side lengths in bins of the pooled maps of the pyramid pooling module.
    cfg.MODEL.UPER.POOL_SCALES = [1, 2, 3, 6]
    cfg.MODEL.UPER.NORM = "BN"


def _add_heads(cfg: CN) -> None:
    # Dropout probability before the last layer, for the heads of this project but "DeepSupervisionHead", without one,
    # and "ASPPHead", which reads ASPP_DROPOUT, and ASPP_CHANNELS instead of CONVS_DIM.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.1

    # MODEL.OCR, for MODEL.SEM_SEG_HEAD.NAME "OCRHead", of which CONVS_DIM and DROPOUT count, too.
    cfg.MODEL.OCR = CN()
    # Width in which pixels and object regions are compared.
    cfg.MODEL.OCR.KEY_CHANNELS = 256
    # The first prediction: feature maps ([]: those of the head), width and kernel of its hidden layer, loss weight.
    cfg.MODEL.OCR.AUX_IN_FEATURES = []
    cfg.MODEL.OCR.AUX_CHANNELS = 720
    cfg.MODEL.OCR.AUX_KERNEL_SIZE = 1
    cfg.MODEL.OCR.AUX_LOSS_WEIGHT = 0.4

    # MODEL.PIXEL_LOSS: the loss of this project's heads, by its name in PIXEL_LOSS_REGISTRY: "CrossEntropy", "OHEM",
    # "LovaszSoftmax" or "RMI".
    cfg.MODEL.PIXEL_LOSS = CN()
    cfg.MODEL.PIXEL_LOSS.NAME = "CrossEntropy"
    # The loss of auxiliary predictions; "": the same.
    cfg.MODEL.PIXEL_LOSS.AUX_NAME = ""
    # CrossEntropy and OHEM: one weight per class, or [] for equal weights.
    cfg.MODEL.PIXEL_LOSS.CLASS_WEIGHTS = []
    # OHEM counts the pixels whose class has a lower probability than THRESHOLD, and in any case the MIN_KEPT hardest
    # pixels of each process.
    cfg.MODEL.PIXEL_LOSS.OHEM_THRESHOLD = 0.9
    cfg.MODEL.PIXEL_LOSS.OHEM_MIN_KEPT = 131072
    # RMI: weight of the mutual information beside the cross entropy, which has the rest of 1; factor by which maps are
    # pooled first; side of a region in pooled pixels.
    cfg.MODEL.PIXEL_LOSS.RMI_WEIGHT = 0.5
    cfg.MODEL.PIXEL_LOSS.RMI_STRIDE = 4
    cfg.MODEL.PIXEL_LOSS.RMI_RADIUS = 3

    # MODEL.AUX_HEAD: a second head, in training only.
    cfg.MODEL.AUX_HEAD = CN()
    # Its name in Detectron2's registry of semantic segmentation heads, such as "FCNHead" on one feature map; "" for
    # none. Keys that are not here are read from MODEL.SEM_SEG_HEAD, so those of "ASPPHead" named ASPP_...
    cfg.MODEL.AUX_HEAD.NAME = ""
    cfg.MODEL.AUX_HEAD.IN_FEATURES = ["res4"]
    cfg.MODEL.AUX_HEAD.CONVS_DIM = 256
    cfg.MODEL.AUX_HEAD.DROPOUT = 0.1
    cfg.MODEL.AUX_HEAD.NORM = "BN"
    cfg.MODEL.AUX_HEAD.LOSS_WEIGHT = 0.4


def _add_input(cfg: CN) -> None:
    # Images and label maps of more pixels than this are refused, as a broken or hostile file could fill the memory.
    cfg.INPUT.MAX_PIXELS = 2**28
    # The image is scaled by a factor that is uniform between these two; 1 is the size on disk, or MIN_SIZE_TRAIN.
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]
    # Width over height changes by a factor that is uniform between these two.
    cfg.INPUT.ASPECT_RANGE = [1.0, 1.0]
    # Factors of brightness, contrast and saturation are uniform between two numbers, 1 changes nothing; HUE is the
    # largest turn, as a fraction of the colour circle.
    cfg.INPUT.COLOR_JITTER = CN()
    cfg.INPUT.COLOR_JITTER.ENABLED = False
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = [0.6667, 1.5]
    cfg.INPUT.COLOR_JITTER.CONTRAST = [0.6667, 1.5]
    cfg.INPUT.COLOR_JITTER.SATURATION = [0.6667, 1.5]
    cfg.INPUT.COLOR_JITTER.HUE = 0.05
    # Gaussian blur with this probability; its standard deviation is an integer from RADIUS, both ends included.
    cfg.INPUT.BLUR = CN()
    cfg.INPUT.BLUR.PROB = 0.0
    cfg.INPUT.BLUR.RADIUS = [3, 6]
    # File that holds a pipeline of Albumentations, as `albumentations.save` writes it in yaml or json: applied to image
    # and label map in training, after all other augmentation; "": none. Needs the extra albumentations.
    cfg.INPUT.ALBUMENTATIONS = ""

    # Datasets that are folders of images and label maps: a list of dicts, see d2_contrast/data/datasets/folders.py.
    cfg.DATASETS.FOLDERS = []
    # A training image or label that cannot be used: "raise" the error, or "skip" it. Another sample then takes its
    # place, and the end of the run lists what was skipped.
    cfg.DATALOADER.ON_ERROR = "raise"
    # DATALOADER.SAMPLER_TRAIN "RepeatFactorTrainingSampler" repeats images with classes that are in a smaller share of
    # the images than REPEAT_THRESHOLD, counted in the label maps.


def _add_solver(cfg: CN) -> None:
    # "SGD" or "AdamW". CLIP_GRADIENTS is Detectron2's, whose CLIP_TYPE "value" and "norm" look at each parameter by
    # itself; with "full_model" the norm of all gradients together is at most CLIP_VALUE.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor on the learning rate of all that is not the backbone (to which a pyramid belongs).
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    # Batches of IMS_PER_BATCH images for one step of the optimizer, which is what MAX_ITER and all periods count.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Most images of a batch that a process takes; 0: any number. Where there are too few processes for IMS_PER_BATCH,
    # batches are split and ACCUMULATION_STEPS grows, so that a step keeps its images.
    cfg.SOLVER.MAX_IMS_PER_PROCESS = 0
    # Number of newest checkpoints that are kept, that of the end among them: 2 or more; 0 keeps those of every
    # CHECKPOINT_PERIOD iterations.
    cfg.SOLVER.MAX_TO_KEEP = 2
    # For AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # A step with a loss or gradient that is infinite or not a number: "stop" the run, or "skip" the step, which then
    # changes nothing. NON_FINITE_MAX_IN_ROW skipped steps in a row stop the run, too. The step that stops a run is
    # written to OUTPUT_DIR; `d2-contrast replay FILE` runs it again.
    cfg.SOLVER.NON_FINITE = "stop"
    cfg.SOLVER.NON_FINITE_MAX_IN_ROW = 10
    # Exponential moving average of the weights: evaluated in place of the weights, and saved beside them.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the old average that a step keeps.
    cfg.SOLVER.EMA.DECAY = 0.999
    # Parameters of these names get no weight decay, wherever they are. Norms and biases have keys of Detectron2's own:
    # WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS.
    cfg.SOLVER.NO_DECAY_NAMES = ["relative_position_bias_table", "absolute_pos_embed"]


def _add_test(cfg: CN) -> None:
    """TEST: how an image is predicted at test time; see d2_contrast.evaluation.MultiViewInference."""
    # model_best.safetensors holds the weights with the highest such metric on the first test dataset: "mIoU",
    # "mIoU-<group>", "IoU-<class>", or another one of sem_seg_results.json.
    cfg.TEST.BEST_METRIC = "mIoU"
    # Evaluate in mixed precision, of the dtype SOLVER.AMP.DTYPE. Scores are float32 in any case.
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False
    # Scores of an image that are averaged over windows or views stay on the GPU up to this many GiB; larger ones go to
    # host memory. 0: up to half of what the GPU has free.
    cfg.TEST.MAX_DEVICE_GIB = 0.0
    # Predict windows of SIZE every STRIDE (height, width in pixels of the scaled image); their logits are averaged
    # where they overlap.
    cfg.TEST.SLIDING_WINDOW = CN()
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [512, 512]
    cfg.TEST.SLIDING_WINDOW.STRIDE = [341, 341]
    # TEST.AUG.ENABLED and FLIP are Detectron2's: average probabilities over SCALES, factors on the test size, and
    # their mirror images. Its MIN_SIZES and MAX_SIZE are not used.
    cfg.TEST.AUG.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def _add_visualize(cfg: CN) -> None:
    """VISUALIZE: the pictures that a run leaves in OUTPUT_DIR, at its end and every VIS_PERIOD iterations."""
    cfg.VISUALIZE = CN()
    # Images in predictions.png, evenly spread over the first test dataset, the worst first; 0: no such picture.
    cfg.VISUALIZE.NUM_IMAGES = 6
    # Largest number of positions of each scale in tsne.png; 0: no such picture.
    cfg.VISUALIZE.TSNE_POINTS = 800


def _add_wandb(cfg: CN) -> None:
    """WANDB: metrics in Weights & Biases, beside metrics.json and TensorBoard."""
    cfg.WANDB = CN()
    # Name of the project; "": off. Needs the extra wandb.
    cfg.WANDB.PROJECT = ""
    # Name of the run; "": chosen by Weights & Biases.
    cfg.WANDB.NAME = ""


def _add_processes(cfg: CN) -> None:
    # Seconds without an answer from a process after which the job ends; more than the first process needs for what it
    # does alone.
    cfg.PROCESS_GROUP_TIMEOUT = 1800.0


def _add_defaults(cfg: CN) -> None:
    """Keys of Detectron2's own that have another default here."""
    # MIN_SIZE_*, MAX_SIZE_*: shorter and longer side in pixels before the random scale, or at test time; 0 keeps the
    # size that the image has on disk.
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    # CROP.ENABLED, CROP.SIZE and CROP.SINGLE_CATEGORY_MAX_AREA are Detectron2's and DeepLab's: a crop of SIZE
    # (height, width in pixels), padded where the image is smaller, in which no class takes more than that share.
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [512, 512]
    # Batches need no grouping by shape: crops are of one size, and whole images are padded.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
