"""Every stage's frozen spec, with the names it may use.

A recipe is these dataclasses written in TOML (config.py). Names of students, backbones, optimisers and so on are listed
here, so that a recipe is checked whole before any stage is imported; each stage holds a literal table with exactly
these keys, and a test keeps the two equal. Range checks live in `__post_init__`: a ConfigError with the key in `where`,
or one that lists several such faults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from edgeface.errors import ConfigError, did_you_mean
from edgeface.precision import PRECISIONS, TARGETS
from edgeface.tasks import TASKS, Kind

TEACHERS = ("vgg16", "vgg19", "resnet50")
STUDENTS = ("edge_s", "edge_m", "edge_l", "cnn5", "vgg11", "lightcnn9", "tcdcn_relu")
# Trained and scored, never deployed.
RESEARCH = ("tcdcn", "tcdcn_local", "tcdcn_unshared", "tcdcn_60", "inception_resnet_v1")
BACKBONES = (*TEACHERS, *RESEARCH, *STUDENTS)
UNPOOLED = ("edge_s", "edge_m", "edge_l")  # students without a max-pooling, which no PReLU may stand before
ACTIVATIONS = ("relu", "prelu")
# Each with the backbones that can take it.
LANDMARK_HEADS = {"linear": BACKBONES, "integral": TEACHERS, "heatmap": ("edge_s", "edge_m", "edge_l")}
IMAGENET = "imagenet"  # a start that is no folder
CORPORA = (
    *("synthetic", "folder", "mtfl", "fairface", "ferplus", "mebeauty", "london", "lsafbd", "scut_fbp5500", "utkface"),
    *("fer2013", "rafdb", "celeba", "aflw", "afw", "w300", "wflw", "lfw", "ckplus", "oulu_casia", "webdataset"),
)
OPTIMIZERS = ("adamw", "sgd")
DTYPES = ("fp32", "bf16")
BALANCERS = (
    "fixed",
    "uncertainty",
    "learned",
    "naive-dynamic",
    "dynamic",
    "gradnorm",
    "dwa",
    "famo",
    "pcgrad",
    "aligned",
)
AT_FEATURES = ("gradnorm", "pcgrad", "aligned")  # those that look at the tasks' gradients where all heads read
STOPPING = ("none", "each", "all")
DATABASES = ("", "database")
CLASSIFIERS = ("softmax", "forest")
CALIBRATIONS = ("minmax", "ema", "percentile", "mse")
LANDMARK_LOSSES = ("wing", "l2", "smooth_l1")


def _tasks_of(*kinds: Kind) -> tuple[str, ...]:
    return tuple(task.name for task in TASKS.values() if task.kind in kinds)


# Forms of the loss against labels, each with the tasks that can take it; where none is named, the kind's own is taken.
IMBALANCE_LOSSES = ("weighted", "focal", "weighted-focal")
LABEL_LOSSES = {
    "distribution": ("age", "beauty"),
    **dict.fromkeys(IMBALANCE_LOSSES, _tasks_of(Kind.CLASSES, Kind.ATTRIBUTES)),
    "softmax": _tasks_of(Kind.IDENTITY),
    "center": _tasks_of(Kind.IDENTITY),
    "margin": _tasks_of(Kind.IDENTITY),
}
# Other forms of a task's output, each with the tasks that can take it and the bins of its stages (models/heads.py).
HEADS = {"3x3": ("age",), "3x3x3": ("age",)}
HEAD_STAGES = {"3x3": (3, 3), "3x3x3": (3, 3, 3)}
# Labels that a recipe may have derived from others (data/derive.py).
DERIVED = ("eyes_open", "mouth_open", "glasses", "eyes_occluded")
# What lies beyond the edge of a packed crop when augmentation looks there.
BORDERS = ("repeat", "white")
# Losses against a teacher, each with the tasks that it can teach; FEATURES is what lies between picture and heads.
FEATURES = "features"
DISTILL_LOSSES = {
    "kl": _tasks_of(Kind.CLASSES, Kind.AGE, Kind.ATTRIBUTES),
    "dkd": _tasks_of(Kind.CLASSES, Kind.AGE),
    "dist": _tasks_of(Kind.CLASSES, Kind.AGE),
    "distribution": ("age", "beauty"),
    "wing": _tasks_of(Kind.LANDMARKS),
    "l2": _tasks_of(Kind.LANDMARKS, Kind.SCORE),
    "smooth_l1": _tasks_of(Kind.LANDMARKS),
    "bounded": _tasks_of(Kind.LANDMARKS, Kind.SCORE),
    "cosine": (*_tasks_of(Kind.IDENTITY), FEATURES),
    "attention": (FEATURES,),
    "hint": (FEATURES,),
    "relational": (FEATURES,),
}
RUNTIMES = (
    "torch",
    "tflite-xnnpack",
    "tflite-builtin",
    "tflite-2.14",
    "tensorflow",
    "openvino",
    "onnxruntime",
    "mil",
    "mil-fp16",
    "coreml",
)
STAGES = ("teacher", "student", "qat")
BUDGET_REFERENCES = ("student", "teacher")
SAMPLERS = ("grid", "tpe")
COSTS = ("latency_ms", "size_bytes", "macs")
SWEPT_TARGETS = ("android", "openvino", "onnx")  # whose files this machine can time


def landmark_heads(backbone: str) -> tuple[str, ...]:
    """The landmark heads that a backbone can take."""
    return tuple(head for head, backbones in LANDMARK_HEADS.items() if backbone in backbones)


def _number(name: str) -> float:
    """The width of "cnn5@0.5"; NaN of what is no number."""
    try:
        return float(name.partition("@")[2])
    except ValueError:
        return math.nan


def _unless(condition: bool, key: str, found: object, expected: str, *, hint: str = "") -> ConfigError | None:
    if condition:
        return None
    return ConfigError(f"{found!r}", expected=expected, where=key, do=hint or "Change it in the recipe or with --set")


def _unless_one_of(options: Sequence[str], key: str, found: str) -> ConfigError | None:
    names = ", ".join(map(repr, options))
    return _unless(found in options, key, found, f"one of {names}", hint=did_you_mean(found, options))


def _unless_task(key: str, name: str, tasks: Iterable[str]) -> ConfigError | None:
    names = tuple(tasks)
    hint = did_you_mean(name, names) or "Remove it or correct its name"
    return _unless(name in names, key, name, f"one of {', '.join(map(repr, names))}", hint=hint)


def _unless_loss(key: str, task: str, name: str, losses: Mapping[str, Sequence[str]]) -> ConfigError | None:
    """None when loss `name` is one of those that `task` can take."""
    options = tuple(loss for loss, tasks in losses.items() if task in tasks)
    if not options:
        return _unless(False, key, name, f"no entry: {task!r} has one form only", hint="Take it out")
    return _unless_one_of(options, key, name)


def _unless_source(key: str, source: str) -> ConfigError | None:
    """None when `source` begins with the name of a corpus; whether the corpus is there is seen when it is opened."""
    corpus = source.partition("@")[0].partition(":")[0]
    names = ", ".join(map(repr, CORPORA))
    hint = did_you_mean(corpus, CORPORA) or "Write CORPUS[:PATH][@SPLIT], synthetic:N[@SPLIT] or folder:PATH[@SPLIT]"
    return _unless(corpus in CORPORA, key, source, f"a source whose corpus is one of {names}", hint=hint)


def _refuse(*faults: ConfigError | None) -> None:
    """Raise all faults of a spec at once: the fault itself when there is one, else an error that lists them."""
    met = [fault for fault in faults if fault is not None]
    if len(met) == 1:
        raise met[0]
    if met:
        raise ConfigError(f"{len(met)} faults", faults=met)


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One named output of a network, complete enough to decode it anywhere.

    Attributes:
        name: Name of the output tensor; the task's name.
        task: Key of tasks.TASKS.
        shape: Shape of one sample, without the batch axis.
        classes: Class names, in logit order.
        mean_shape: (K, 2) mean landmarks in crop sides, row by row; a landmark output is an offset from it.
        threshold: Probability of class 1 above which a two-class decision is class 1.
        stages: Bins of each stage of a stage-wise age, coarsest first; empty for one class a year.
        heatmap: Whether landmarks come as logits of cells, of shape (rows, columns, K), in the place of offsets.
    """

    LATER: ClassVar[tuple[str, ...]] = ("heatmap",)

    name: str
    task: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    mean_shape: tuple[tuple[float, float], ...] = ()
    threshold: float = 0.5
    stages: tuple[int, ...] = ()
    heatmap: bool = False


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """How to build a network: a backbone and its dials.

    Attributes:
        backbone: One of BACKBONES.
        width: Factor on every channel count.
        input_px: Side of the square input.
        hidden: Units of a shared hidden layer between backbone and heads; 0 leaves it out.
        head: "pool" for global average pooling, "flatten" to keep the last map; "" takes the backbone's own.
        dropout: Share of shared features dropped in training.
        activation: One of ACTIVATIONS; networks with non-linearities of their own take "relu" only.
        landmark_head: One of LANDMARK_HEADS: "linear" over the shared features, as of every task; "integral", offsets
            by the expected places of heatmaps inside a teacher; or "heatmap", the heatmaps themselves, which a student
            can compute in integers.
    """

    LATER: ClassVar[tuple[str, ...]] = ("landmark_head",)

    backbone: str
    width: float = 1.0
    input_px: int = 64
    hidden: int = 0
    head: str = ""
    dropout: float = 0.0
    activation: str = "relu"
    landmark_head: str = "linear"

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(tuple(LANDMARK_HEADS), "landmark_head", self.landmark_head),
            _unless(
                self.backbone in LANDMARK_HEADS.get(self.landmark_head, BACKBONES),
                "landmark_head",
                self.landmark_head,
                f"what {self.backbone} can take: {', '.join(landmark_heads(self.backbone))}",
            ),
            _unless_one_of(BACKBONES, "backbone", self.backbone),
            _unless(0.0 < self.width <= 4.0, "width", self.width, "a factor in (0, 4]"),
            _unless(16 <= self.input_px <= 512, "input_px", self.input_px, "16 to 512 pixels"),
            _unless(0 <= self.hidden <= 8192, "hidden", self.hidden, "0 to 8192 units"),
            _unless(self.head in ("", "pool", "flatten"), "head", self.head, "'pool', 'flatten' or ''"),
            _unless(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "a share in [0, 1)"),
            _unless_one_of(ACTIVATIONS, "activation", self.activation),
        )

    def on(self, backbone: str, *, width: float | None = None, input_px: int | None = None) -> NetworkSpec:
        """This network on another trunk; its landmarks come from a linear layer where that trunk makes no heatmaps.

        Raises:
            ConfigError: No network can be like this.
        """
        kept = self.landmark_head if self.landmark_head in landmark_heads(backbone) else "linear"
        return replace(
            self,
            backbone=backbone,
            width=self.width if width is None else width,
            input_px=self.input_px if input_px is None else input_px,
            landmark_head=kept,
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a user of a trained model must know: its input, its outputs and how the face is cropped.

    Attributes:
        name: Name the model ships under, such as "edge_s".
        input_px: Side of the square uint8 RGB input.
        outputs: Its outputs, in a fixed order; always looked up by name.
        mean: Per-channel value subtracted from the uint8 picture.
        std: Per-channel divisor after that; deployable students use mean 128 and std 64.
    """

    name: str
    input_px: int
    outputs: tuple[OutputSpec, ...]
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)

    def output(self, name: str) -> OutputSpec:
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(name)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Sources by name (`CORPUS[:PATH][@SPLIT]`, `synthetic:N[@SPLIT]`, `folder:PATH`) and how crops are packed.

    Attributes:
        root: Folder that holds the corpora; "" takes $EDGEFACE_DATA, else ./data.
        train: Sources trained on.
        val: Sources that choose nothing but are watched, and that budgets are measured on.
        test: Sources reported once.
        pack_px: Side in pixels of the crops packed for training.
        margin: Side of a packed training crop over the side of the nominal crop; the rest is room for augmentation.
        derive: Tasks of DERIVED whose labels are made from other labels, for training and validation, where a corpus
            gives none.
        balance: "database" draws the databases of `train` equally often, whatever their sizes, in each batch as in each
            epoch; "" draws every face once an epoch. The splits of one corpus are one database.
    """

    root: str = ""
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    pack_px: int = 96
    margin: float = 1.3
    derive: tuple[str, ...] = ()
    balance: str = ""

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(DATABASES, "balance", self.balance),
            _unless(len(self.train) > 0, "train", self.train, "at least one source"),
            _unless(16 <= self.pack_px <= 1024, "pack_px", self.pack_px, "16 to 1024 pixels"),
            _unless(1.0 <= self.margin <= 3.0, "margin", self.margin, "1 to 3"),
            *(_unless_one_of(DERIVED, f"derive[{place}]", task) for place, task in enumerate(self.derive)),
            *(
                _unless_source(f"{key}[{place}]", source)
                for key in ("train", "val", "test")
                for place, source in enumerate(getattr(self, key))
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """How training crops vary. Amounts are half-ranges drawn uniformly; `*_share` is the share of samples touched.

    Attributes:
        rotation_deg: Largest rotation either way, degrees.
        scale: Smallest and largest field of view over the nominal crop; above 1 shows more than the nominal crop.
        translation: Largest shift either way, in nominal crop sides.
        mirror_share: Share of samples mirrored.
        brightness: Largest shift either way, as a share of 255.
        exposure: Largest relative change of every value either way: what other tools call brightness, as torchvision.
        contrast: Largest relative change of the distance to mid-grey either way.
        saturation: Largest relative change either way.
        hue: Largest turn of the colours either way, as a share of a full turn.
        shear_deg: Largest slant of the face either way, degrees.
        border: One of BORDERS: what lies beyond the packed crop.
        blur_share: Share blurred, with a Gaussian of up to `blur_px` standard deviation.
        blur_px: Largest standard deviation, in output pixels.
        jpeg_share: Share that is compressed as JPEG, quality 20 to 95.
        occlusion_share: Share that gets a patch placed by the landmarks.
    """

    LATER: ClassVar[tuple[str, ...]] = ("exposure",)

    rotation_deg: float = 30.0
    scale: tuple[float, float] = (0.85, 1.25)
    translation: float = 0.12
    mirror_share: float = 0.5
    brightness: float = 0.15
    contrast: float = 0.4
    saturation: float = 0.4
    blur_share: float = 0.2
    blur_px: float = 1.2
    jpeg_share: float = 0.3
    occlusion_share: float = 0.2
    hue: float = 0.0
    shear_deg: float = 0.0
    border: str = "repeat"
    exposure: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        shares = ("mirror_share", "blur_share", "jpeg_share", "occlusion_share", "brightness")
        changes = ("contrast", "saturation", "exposure")
        _refuse(
            _unless(0.0 <= self.rotation_deg <= 180.0, "rotation_deg", self.rotation_deg, "0 to 180 degrees"),
            _unless(0.2 <= low <= high <= 3.0, "scale", self.scale, "two factors, 0.2 <= low <= high <= 3"),
            _unless(0.0 <= self.translation <= 0.5, "translation", self.translation, "0 to 0.5 crop sides"),
            *(
                _unless(0.0 <= getattr(self, key) <= 1.0, key, getattr(self, key), "a share in [0, 1]")
                for key in shares
            ),
            *(
                _unless(0.0 <= getattr(self, key) < 1.0, key, getattr(self, key), "a relative change in [0, 1)")
                for key in changes
            ),
            _unless(0.0 <= self.blur_px <= 8.0, "blur_px", self.blur_px, "0 to 8 pixels"),
            _unless(0.0 <= self.hue <= 0.5, "hue", self.hue, "0 to 0.5 turns"),
            _unless(0.0 <= self.shear_deg <= 45.0, "shear_deg", self.shear_deg, "0 to 45 degrees"),
            _unless_one_of(BORDERS, "border", self.border),
        )


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One run of the training loop.

    Attributes:
        epochs: Passes over the training samples.
        batch: Samples of a step, over all ranks.
        optimizer: One of OPTIMIZERS.
        lr: Peak learning rate, after a linear warm-up and before a cosine descent to zero.
        weight_decay: Decoupled for adamw; not applied to biases and batch-norm.
        momentum: For sgd (Nesterov).
        warmup_epochs: Length of the warm-up; may be a fraction.
        ema: Decay of the averaged weights per step; 0 keeps none. The average is what is saved.
        clip: Largest global gradient norm; 0 does not clip.
        dtype: One of DTYPES; bf16 is autocast, weights stay fp32.
        checkpoint_s: Seconds between step checkpoints.
        balance: Task whose rare classes are drawn more often, by the inverse square root of their share; "" draws every
            sample once an epoch.
        accumulate: Parts that each process computes its share of a batch in, one after another, where its memory does
            not hold it at once. Batch-norm, and losses that compare samples, look at a part.
    """

    LATER: ClassVar[tuple[str, ...]] = ("accumulate",)

    epochs: float = 30.0
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    ema: float = 0.0
    clip: float = 1.0
    dtype: str = "fp32"
    checkpoint_s: float = 60.0
    balance: str = ""
    accumulate: int = 1

    def __post_init__(self) -> None:
        _refuse(
            _unless(0.0 < self.epochs <= 100_000, "epochs", self.epochs, "more than 0 epochs"),
            _unless(2 <= self.batch <= 65_536, "batch", self.batch, "2 to 65536 samples (batch-norm needs two)"),
            _unless_one_of(OPTIMIZERS, "optimizer", self.optimizer),
            _unless(math.isfinite(self.lr) and self.lr > 0.0, "lr", self.lr, "a positive number"),
            _unless(0.0 <= self.weight_decay < 1.0, "weight_decay", self.weight_decay, "a number in [0, 1)"),
            _unless(0.0 <= self.momentum < 1.0, "momentum", self.momentum, "a number in [0, 1)"),
            _unless(self.warmup_epochs >= 0.0, "warmup_epochs", self.warmup_epochs, "0 or more"),
            _unless(0.0 <= self.ema < 1.0, "ema", self.ema, "a decay in [0, 1)"),
            _unless(self.clip >= 0.0, "clip", self.clip, "0 or more"),
            _unless_one_of(DTYPES, "dtype", self.dtype),
            _unless(self.checkpoint_s > 0.0, "checkpoint_s", self.checkpoint_s, "more than 0 seconds"),
            _unless(1 <= self.accumulate <= 1024, "accumulate", self.accumulate, "1 to 1024 parts"),
            _unless(
                self.balance == "" or (self.balance in TASKS and TASKS[self.balance].kind is Kind.CLASSES),
                "balance",
                self.balance,
                "'' or a task with classes, such as 'pose'",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class BalancerSpec:
    """How the losses of several tasks become one step; on top of the recipe's task weights.

    Attributes:
        name: One of BALANCERS.
        rate: Learning rate of what the balancer learns, over the network's.
        alpha: Of "gradnorm": how strongly slower tasks are favoured.
        temperature: Of "dwa": higher is nearer to equal weights.
        sigma: Of "dynamic": keeps a task whose loss vanishes from an infinite say.
        floor: Of "learned" and "gradnorm": least weight of a task.
    """

    ALONE: ClassVar[str] = "name"

    name: str = "fixed"
    rate: float = 1.0
    alpha: float = 1.5
    temperature: float = 2.0
    sigma: float = 0.01
    floor: float = 1e-3

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(BALANCERS, "name", self.name),
            _unless(0.0 < self.rate <= 1000.0, "rate", self.rate, "above 0, at most 1000"),
            _unless(0.0 <= self.alpha <= 10.0, "alpha", self.alpha, "0 to 10"),
            _unless(0.0 < self.temperature <= 1000.0, "temperature", self.temperature, "above 0, at most 1000"),
            _unless(0.0 < self.sigma <= 1.0, "sigma", self.sigma, "above 0, at most 1"),
            _unless(0.0 < self.floor < 1.0, "floor", self.floor, "a number in (0, 1)"),
        )


@dataclass(frozen=True, kw_only=True)
class StoppingSpec:
    """Early stopping of auxiliary tasks; the first task of the recipe is the main one and never stops.

    Attributes:
        mode: "none"; "each" stops a task when its criterion exceeds the threshold; "all" stops every auxiliary task
            when the mean of their criteria does.
        window: Validations the criterion looks back on.
        threshold: The criterion's bound.
        validations: How often a training is validated.
    """

    ALONE: ClassVar[str] = "mode"

    mode: str = "none"
    window: int = 5
    threshold: float = 1.0
    validations: int = 30

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(STOPPING, "mode", self.mode),
            _unless(1 <= self.window <= 100, "window", self.window, "1 to 100 validations"),
            _unless(math.isfinite(self.threshold), "threshold", self.threshold, "a number"),
            _unless(
                self.window < self.validations <= 1000,
                "validations",
                self.validations,
                "more than the window, at most 1000",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TransferSpec:
    """Where a network's trunk starts from.

    Attributes:
        start: "" for random weights, "imagenet" for the published weights of this backbone, or a checkpoint folder.
        blocks: How many of the trunk's blocks are taken over; 0 takes all.
        frozen_prefix: How many of the trunk's blocks stay as they started, batch-norm statistics included.
    """

    start: str = ""
    blocks: int = 0
    frozen_prefix: int = 0

    def __post_init__(self) -> None:
        taken = self.blocks or self.frozen_prefix
        _refuse(
            _unless(self.blocks >= 0, "blocks", self.blocks, "0 (all) or a number of blocks"),
            _unless(self.blocks == 0 or self.start != "", "blocks", self.blocks, "0 without a start"),
            _unless(self.frozen_prefix >= 0, "frozen_prefix", self.frozen_prefix, "0 or a number of blocks"),
            _unless(
                self.frozen_prefix <= (taken if self.start else 0),
                "frozen_prefix",
                self.frozen_prefix,
                "no more blocks than are taken over from a start",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class ForestSpec:
    """Random forests on the trained teacher's shared features, beside its own heads.

    Attributes:
        tasks: Tasks with classes, or a score, that get one.
        trees: Trees of a forest; with fewer than 50, a face may stand in the sample of every tree, and then no tree can
            say anything of it that it did not learn by heart.
        leaf: Least number of faces in a leaf.
    """

    ALONE: ClassVar[str] = "tasks"

    tasks: tuple[str, ...] = ()
    trees: int = 300
    leaf: int = 5

    def __post_init__(self) -> None:
        options = _tasks_of(Kind.CLASSES, Kind.SCORE)
        _refuse(
            *(_unless_task(f"tasks[{place}]", task, options) for place, task in enumerate(self.tasks)),
            _unless(len(set(self.tasks)) == len(self.tasks), "tasks", list(self.tasks), "each task once"),
            _unless(50 <= self.trees <= 10_000, "trees", self.trees, "50 to 10000"),
            _unless(1 <= self.leaf <= 10_000, "leaf", self.leaf, "1 to 10000 faces"),
        )


def _unless_in_parts(train: TrainSpec, balancer: BalancerSpec, stopping: StoppingSpec) -> ConfigError | None:
    """None when no rule over the losses of a whole batch is to see it in parts."""
    plain = balancer == BalancerSpec() and stopping.mode == "none"
    expected = "1 where tasks are balanced or stopped, which looks at the losses of a whole batch"
    return _unless(train.accumulate == 1 or plain, "train.accumulate", train.accumulate, expected)


def _unless_read_apart(network: NetworkSpec, balancer: BalancerSpec) -> ConfigError | None:
    """None when a rule over the tasks' gradients at the shared features sees the landmarks' too."""
    return _unless(
        balancer.name not in AT_FEATURES or network.landmark_head == "linear",
        "balancer.name",
        balancer.name,
        f"one that needs no gradient at the features, which landmark_head = {network.landmark_head!r} does not read",
        hint='Set landmark_head = "linear", or take another balancer',
    )


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The teacher: trained by the recipe, or a frozen one that was trained elsewhere.

    Attributes:
        network: What is trained; not looked at where the teacher is frozen, nor are the next four.
        train: How.
        transfer: Where its trunk starts from.
        balancer: How its tasks are balanced.
        stopping: Early stopping of its auxiliary tasks.
        forest: Forests on its features, once it is trained.
        frozen: A checkpoint, a model file of anyone, or a folder of stored answers that teaches instead; "" trains one.
        described: Of a model file that does not tell what it takes and answers: the description that does.
        licence: Terms of a model file of others; while they are not known, what it taught is for research only.
        map: Output of the frozen teacher to the task it teaches; outputs that are not named keep their names.
    """

    network: NetworkSpec = field(default_factory=lambda: NetworkSpec(backbone="vgg16"))
    train: TrainSpec = field(default_factory=TrainSpec)
    transfer: TransferSpec = field(default_factory=TransferSpec)
    balancer: BalancerSpec = field(default_factory=BalancerSpec)
    stopping: StoppingSpec = field(default_factory=StoppingSpec)
    forest: ForestSpec = field(default_factory=ForestSpec)
    frozen: str = ""
    described: str = ""
    licence: str = ""
    map: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        foreign = {"described": self.described, "licence": self.licence, "map": dict(self.map)}
        _refuse(
            _unless_in_parts(self.train, self.balancer, self.stopping),
            _unless_read_apart(self.network, self.balancer),
            *(
                _unless(not value or self.frozen != "", key, value, "nothing without teacher.frozen")
                for key, value in foreign.items()
            ),
            _unless(
                len(set(self.map.values())) == len(self.map),
                "map",
                dict(self.map),
                "each task under one name of theirs",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    network: NetworkSpec = field(default_factory=lambda: NetworkSpec(backbone="edge_s"))
    train: TrainSpec = field(default_factory=TrainSpec)
    transfer: TransferSpec = field(default_factory=TransferSpec)
    balancer: BalancerSpec = field(default_factory=BalancerSpec)
    stopping: StoppingSpec = field(default_factory=StoppingSpec)

    def __post_init__(self) -> None:
        pooled = self.network.activation == "prelu" and self.network.backbone not in UNPOOLED
        _refuse(
            _unless_in_parts(self.train, self.balancer, self.stopping),
            _unless_read_apart(self.network, self.balancer),
            _unless_one_of(STUDENTS, "network.backbone", self.network.backbone),
            _unless(
                not pooled,
                "network.activation",
                self.network.activation,
                f"'relu': max-pooling reads {self.network.backbone}'s activations, and a PReLU there has no int8 form",
                hint="Take edge_s, or train it as the teacher to compare",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """What the student learns from the teacher beside the labels.

    Attributes:
        soft: Weight of the teacher's targets; the labels weigh 1 - soft. 0 trains without a teacher, 1 without labels.
            A sample without a label for a task learns that task from the teacher at full weight.
        temperature: Softens class logits of teacher and student.
        losses: Task name, or "features", to one of DISTILL_LOSSES; a task that is not named takes its kind's own, and
            features are compared only when they are named.
        feature_weight: Weight of the feature loss in the sum.
        taps: Which layers are compared, as "STUDENT:TEACHER" names of their trunks' layers, or "features" for what the
            heads read; empty takes the last maps (attention, hint) or the features (relational, cosine).
        classifier: Which of the teacher's gives its answers, where it has both: "softmax", its own heads, or "forest".

    Source:
        Hinton et al., arXiv:1503.02531. 2M BeautyNet with distillation publishes neither share nor temperature: the
        defaults are ours.
    """

    soft: float = 0.5
    temperature: float = 2.0
    losses: Mapping[str, str] = field(default_factory=dict)
    feature_weight: float = 1.0
    taps: tuple[str, ...] = ()
    classifier: str = "softmax"

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(CLASSIFIERS, "classifier", self.classifier),
            _unless(0.0 <= self.soft <= 1.0, "soft", self.soft, "a share in [0, 1]"),
            _unless(0.0 < self.temperature <= 100.0, "temperature", self.temperature, "more than 0, at most 100"),
            *(_unless_loss(f"losses.{task}", task, name, DISTILL_LOSSES) for task, name in self.losses.items()),
            _unless(
                math.isfinite(self.feature_weight) and self.feature_weight > 0.0,
                "feature_weight",
                self.feature_weight,
                "a number above 0",
            ),
            _unless(
                not self.taps or FEATURES in self.losses, "taps", list(self.taps), "no taps without losses.features"
            ),
            *(
                _unless(len(pair.split(":")) == 2 and all(pair.split(":")), f"taps[{place}]", pair, "STUDENT:TEACHER")
                for place, pair in enumerate(self.taps)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Forms of the task losses.

    Attributes:
        landmarks: One of LANDMARK_LOSSES.
        wing_width: Half-width of the wing loss's logarithmic part, in crop sides.
        wing_curvature: Its curvature, in crop sides.
        label_smoothing: Share of a class label's mass spread over all classes.
        forms: Task name to one of LABEL_LOSSES; a task that is not named takes its kind's own.
        center_weight: Weight of the distance to a person's centre, for identity's "center".
        center_rate: How far a centre moves towards its batch, in (0, 1].
        margin: What identity's "margin" takes from the cosine of the right person.
        margin_scale: Factor on its cosines.
        class_power: Of the "weighted" forms: a class weighs in proportion to its share of the labels to minus this; 1
            makes all classes weigh the same in the sum.
        focal_gamma: Of the "focal" forms: how fast the loss fades where the network is right already. These forms
            smooth no labels.
    """

    landmarks: str = "wing"
    wing_width: float = 0.1
    wing_curvature: float = 0.02
    label_smoothing: float = 0.0
    forms: Mapping[str, str] = field(default_factory=dict)
    center_weight: float = 0.003
    center_rate: float = 0.5
    margin: float = 0.35
    margin_scale: float = 30.0
    class_power: float = 1.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(LANDMARK_LOSSES, "landmarks", self.landmarks),
            _unless(self.wing_width > 0.0, "wing_width", self.wing_width, "more than 0"),
            _unless(self.wing_curvature > 0.0, "wing_curvature", self.wing_curvature, "more than 0"),
            _unless(0.0 <= self.label_smoothing < 1.0, "label_smoothing", self.label_smoothing, "a share in [0, 1)"),
            *(_unless_loss(f"forms.{task}", task, name, LABEL_LOSSES) for task, name in self.forms.items()),
            _unless(0.0 <= self.center_weight <= 10.0, "center_weight", self.center_weight, "0 to 10"),
            _unless(0.0 < self.center_rate <= 1.0, "center_rate", self.center_rate, "a share in (0, 1]"),
            _unless(0.0 <= self.margin < 1.0, "margin", self.margin, "a cosine in [0, 1)"),
            _unless(0.0 < self.margin_scale <= 1000.0, "margin_scale", self.margin_scale, "above 0, at most 1000"),
            _unless(0.0 <= self.class_power <= 2.0, "class_power", self.class_power, "0 to 2"),
            _unless(0.0 <= self.focal_gamma <= 10.0, "focal_gamma", self.focal_gamma, "0 to 10"),
        )


@dataclass(frozen=True, kw_only=True)
class QatSpec:
    """Quantization-aware training, with the teacher still supervising.

    Attributes:
        calibration: How ranges are found: "minmax" or "ema" of per-batch extremes, which follow in training too;
            "percentile" (all but 0.01 % of values at either end) or "mse" (least squared error), which calibration
            settles.
        calibration_batches: Batches seen before the first step.
        ema: Decay per step of the "ema" ranges.
        freeze_share: Share of the steps, at the end, during which ranges stay fixed.
    """

    train: TrainSpec = field(default_factory=lambda: TrainSpec(epochs=5.0, lr=2e-4, warmup_epochs=0.2))
    calibration: str = "ema"
    calibration_batches: int = 20
    ema: float = 0.98
    freeze_share: float = 0.3

    def __post_init__(self) -> None:
        _refuse(
            _unless_one_of(CALIBRATIONS, "calibration", self.calibration),
            _unless(
                1 <= self.calibration_batches <= 10_000, "calibration_batches", self.calibration_batches, "1 to 10000"
            ),
            _unless(0.0 <= self.ema < 1.0, "ema", self.ema, "a decay in [0, 1)"),
            _unless(0.0 <= self.freeze_share <= 1.0, "freeze_share", self.freeze_share, "a share in [0, 1]"),
        )


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    targets: tuple[str, ...] = ("android",)

    def __post_init__(self) -> None:
        _refuse(*(_unless_one_of(TARGETS, f"targets[{place}]", target) for place, target in enumerate(self.targets)))


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """How much worse a built file may be at a task; in a recipe a bare number stands for its points.

    Attributes:
        points: Largest allowed worsening of the task's main metric, in points (accuracies, failure and NME percent),
            relative percent for errors in other units.
        vs: What it is measured against, one of BUDGET_REFERENCES.
    """

    ALONE: ClassVar[str] = "points"

    points: float
    vs: str = "student"

    def __post_init__(self) -> None:
        _refuse(_unless_one_of(BUDGET_REFERENCES, "vs", self.vs))


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """Students that `edgeface sweep` compares: every combination of `students`, `widths` and `inputs` is one trial, a
    run under the recipe's one teacher, and is built in each of `precisions`. A list that is empty stands for the
    recipe's own student.

    Attributes:
        students: Backbones; as "cnn5@0.5" one of that width alone.
        widths: Factors on the channel counts of those without a width of their own.
        inputs: Sides of their input, in pixels.
        precisions: Of the files built, scored and timed; where trials are chosen by what earlier ones gave, the first
            decides.
        epochs: Of each student's distillation; 0 keeps the recipe's.
        target: What is built, one of SWEPT_TARGETS.
        tasks: Whose main metrics are objectives; empty takes all tasks of the recipe.
        cost: What they are weighed against, one of COSTS.
        sampler: "grid" tries every combination in order; "tpe" chooses the next one by what earlier ones gave.
        trials: How many combinations are tried; 0 tries all.
    """

    students: tuple[str, ...] = ()
    widths: tuple[float, ...] = ()
    inputs: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("w8a8",)
    epochs: float = 0.0
    target: str = "android"
    tasks: tuple[str, ...] = ()
    cost: str = "latency_ms"
    sampler: str = "grid"
    trials: int = 0

    @property
    def sizes(self) -> tuple[tuple[str, float | None], ...]:
        """Each of `students`, and its own width; None where it takes each of `widths`."""
        return tuple((name.partition("@")[0], _number(name) if "@" in name else None) for name in self.students)

    def __post_init__(self) -> None:
        once = ("students", "widths", "inputs", "precisions", "tasks")
        offered = PRECISIONS[self.target] if self.target in SWEPT_TARGETS else ()
        _refuse(
            *(
                _unless_one_of(STUDENTS, f"students[{place}]", name.partition("@")[0])
                for place, name in enumerate(self.students)
            ),
            *(
                _unless(
                    0.0 < _number(name) <= 4.0, f"students[{place}]", name, "NAME@WIDTH, the width a factor in (0, 4]"
                )
                for place, name in enumerate(self.students)
                if "@" in name
            ),
            *(
                _unless(0.0 < width <= 4.0, f"widths[{place}]", width, "a factor in (0, 4]")
                for place, width in enumerate(self.widths)
            ),
            *(
                _unless(16 <= px <= 512, f"inputs[{place}]", px, "16 to 512 pixels")
                for place, px in enumerate(self.inputs)
            ),
            *(
                _unless(len(set(values)) == len(values), key, list(values), "each once")
                for key, values in ((key, getattr(self, key)) for key in once)
            ),
            _unless_one_of(SWEPT_TARGETS, "target", self.target),
            _unless(len(self.precisions) > 0, "precisions", list(self.precisions), "at least one"),
            *(
                _unless_one_of(offered, f"precisions[{place}]", precision)
                for place, precision in enumerate(self.precisions if offered else ())
            ),
            _unless(0.0 <= self.epochs <= 100_000, "epochs", self.epochs, "more than 0 epochs, or 0 for the recipe's"),
            _unless_one_of(COSTS, "cost", self.cost),
            _unless_one_of(SAMPLERS, "sampler", self.sampler),
            _unless(self.trials >= 0, "trials", self.trials, "0 or more"),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: teacher, student and QAT on the same data and tasks.

    Attributes:
        name: Name of the run's folder; letters, digits, '.', '_' and '-'.
        summary: One line for `edgeface recipes`.
        seed: Decides every random choice together with epoch and sample id.
        threads: CPU threads; 0 takes all and writes the number into the resolved recipe.
        tasks: Task names with their loss weights.
        heads: Task name to one of HEADS; a task that is not named takes its kind's own output.
        students: Backbones that take the place of `student.network.backbone` one after another, in runs NAME-BACKBONE
            under one teacher; empty for one run.
        budget: Task names with the largest worsening their built files may show.
        sweep: What `edgeface sweep` tries in place of `student.network`.
    """

    name: str
    summary: str = ""
    seed: int = 0
    threads: int = 0
    data: DataSpec
    tasks: Mapping[str, float]
    heads: Mapping[str, str] = field(default_factory=dict)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    loss: LossSpec = field(default_factory=LossSpec)
    teacher: TeacherSpec = field(default_factory=TeacherSpec)
    student: StudentSpec = field(default_factory=StudentSpec)
    distill: DistillSpec = field(default_factory=DistillSpec)
    qat: QatSpec = field(default_factory=QatSpec)
    build: BuildSpec = field(default_factory=BuildSpec)
    budget: Mapping[str, BudgetSpec] = field(default_factory=dict)
    students: tuple[str, ...] = ()
    sweep: SweepSpec = field(default_factory=SweepSpec)

    def __post_init__(self) -> None:
        plain = self.name.isascii() and all(c.isalnum() or c in "._-" for c in self.name) and self.name[:1].isalnum()
        _refuse(
            _unless(
                plain, "name", self.name, "ASCII letters, digits, '.', '_' and '-', beginning with a letter or digit"
            ),
            _unless(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2**31 - 1"),
            _unless(0 <= self.threads <= 1024, "threads", self.threads, "0 to 1024"),
            _unless(len(self.tasks) > 0, "tasks", dict(self.tasks), "at least one task with its loss weight"),
            *(_unless_task(f"tasks.{name}", name, TASKS) for name in self.tasks),
            *(
                _unless(math.isfinite(weight) and weight > 0.0, f"tasks.{name}", weight, "a loss weight above 0")
                for name, weight in self.tasks.items()
            ),
            *(_unless_one_of(STUDENTS, f"students[{place}]", name) for place, name in enumerate(self.students)),
            _unless(len(set(self.students)) == len(self.students), "students", list(self.students), "each once"),
            *(
                _unless_task(f"teacher.forest.tasks[{place}]", name, self.tasks)
                for place, name in enumerate(self.teacher.forest.tasks)
            ),
            *(_unless_task(f"teacher.map.{theirs}", ours, self.tasks) for theirs, ours in self.teacher.map.items()),
            _unless(
                self.distill.classifier == "softmax" or len(self.teacher.forest.tasks) > 0,
                "distill.classifier",
                self.distill.classifier,
                "'softmax' while no task has a forest",
                hint="Name tasks in teacher.forest",
            ),
            *(_unless_task(f"heads.{name}", name, self.tasks) for name in self.heads),
            *(_unless_loss(f"heads.{name}", name, head, HEADS) for name, head in self.heads.items()),
            *(
                _unless(
                    name not in table, f"{key}.{name}", table.get(name), f"no entry beside heads.{name}, which has one"
                )
                for name in self.heads
                for key, table in (("loss.forms", self.loss.forms), ("distill.losses", self.distill.losses))
            ),
            *(_unless_task(f"loss.forms.{name}", name, self.tasks) for name in self.loss.forms),
            *(_unless_task(f"distill.losses.{name}", name, (*self.tasks, FEATURES)) for name in self.distill.losses),
            *(_unless_task(f"budget.{name}", name, self.tasks) for name in self.budget),
            *(_unless_task(f"sweep.tasks[{place}]", name, self.tasks) for place, name in enumerate(self.sweep.tasks)),
            *(
                _unless(
                    math.isfinite(allowed.points) and allowed.points >= 0.0,
                    f"budget.{name}",
                    allowed.points,
                    "0 points or more",
                )
                for name, allowed in self.budget.items()
            ),
        )


def output_spec(task_name: str, *, mean_shape: tuple[tuple[float, float], ...] = (), head: str = "") -> OutputSpec:
    """The exported output of a task.

    Args:
        task_name: Key of tasks.TASKS.
        mean_shape: Required for landmark tasks: K points in crop sides.
        head: One of HEADS that the task can take; "" is its kind's own output.
    """
    task = TASKS[task_name]
    if head:
        stages = HEAD_STAGES[head]
        values = sum(2 * bins + 1 for bins in stages)  # of each stage: a logit and a shift a bin, and a width
        return OutputSpec(name=task.name, task=task.name, shape=(values,), stages=stages)
    if task.kind is Kind.LANDMARKS and len(mean_shape) != task.points:
        raise ConfigError(f"{len(mean_shape)} mean points", expected=f"{task.points}", where=f"output {task_name!r}")
    return OutputSpec(
        name=task.name, task=task.name, shape=task.output_shape, classes=task.classes, mean_shape=mean_shape
    )
