"""The tasks edgeface knows: their canonical labels, exported outputs and metrics.

A reader maps its corpus into these labels; a head exports these outputs; metrics.py scores them. Labels travel as one
NumPy array per task, with one row per sample and one fixed code for "no label":

    kind         label array                                         missing
    landmarks    (N, K, 2) float32, x right and y down               NaN in every coordinate of the sample
    classes      (N,) int64 class index                              -1
    score        (N,) float32 in [0, 1]                              NaN
    age          (N, 2) float32 years, lowest and highest possible   NaN   (an exact age has both equal)
    identity     (N,) int64 person index                             -1
    attributes   (N, M) int8, 0 or 1                                 -1    (each attribute on its own)

Landmark points keep the order (left to right as seen in the image): left eye, right eye, nose tip, left mouth corner,
right mouth corner. "Left" is the image's left throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    LANDMARKS = "landmarks"
    CLASSES = "classes"
    SCORE = "score"
    AGE = "age"
    IDENTITY = "identity"
    ATTRIBUTES = "attributes"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question a network answers about a face.

    Attributes:
        name: Its name in recipes, labels, outputs and results.
        kind: Decides the label form, the loss and the metric.
        classes: Names of the classes (kind `classes`) or attributes.
        points: Number of landmarks (kind `landmarks`).
        metric: Key of the main metric, the one budgets are set on.
        lower_is_better: True for errors, False for accuracies and correlations.
        mirror: Class (or attribute) index each becomes when the image is mirrored; empty when mirroring changes
            nothing.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    points: int = 0
    metric: str = "accuracy"
    lower_is_better: bool = False
    mirror: tuple[int, ...] = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the exported output, before the batch axis is added."""
        if self.kind is Kind.LANDMARKS:
            return (self.points, 2)
        if self.kind is Kind.SCORE:
            return (1,)
        if self.kind is Kind.AGE:
            return (AGE_STAGES,)
        if self.kind is Kind.IDENTITY:
            return (IDENTITY_FEATURES,)
        return (len(self.classes),)


AGE_STAGES = 101  # one class per year, 0 to 100
IDENTITY_FEATURES = 128

EXPRESSIONS = ("happy", "angry", "calm", "scared", "sad", "disgust", "surprised")

# In the order of CelebA's own list (Liu et al., ICCV 2015).
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)


def _landmarks(points: int) -> Task:
    return Task(
        name=f"landmarks{points}",
        kind=Kind.LANDMARKS,
        points=points,
        metric="nme_percent",
        lower_is_better=True,
    )


def _yes_no(name: str, no: str, yes: str, *, metric: str = "accuracy") -> Task:
    return Task(name=name, kind=Kind.CLASSES, classes=(no, yes), metric=metric)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _landmarks(5),
        _landmarks(68),
        _landmarks(98),
        _landmarks(106),
        Task(
            name="pose",
            kind=Kind.CLASSES,
            classes=("left_profile", "left", "frontal", "right", "right_profile"),
            mirror=(4, 3, 2, 1, 0),
        ),
        Task(name="gender", kind=Kind.CLASSES, classes=("male", "female")),
        _yes_no("smile", "not_smiling", "smiling"),
        _yes_no("glasses", "none", "glasses"),
        Task(name="glasses3", kind=Kind.CLASSES, classes=("none", "eyeglasses", "dark")),
        Task(name="expression", kind=Kind.CLASSES, classes=EXPRESSIONS),
        Task(name="expression8", kind=Kind.CLASSES, classes=(*EXPRESSIONS, "contempt")),
        Task(name="age", kind=Kind.AGE, metric="mae_years", lower_is_better=True),
        Task(name="beauty", kind=Kind.CLASSES, classes=("0", "1", "2", "3", "4")),
        Task(name="beauty_score", kind=Kind.SCORE, metric="pearson"),
        Task(name="identity", kind=Kind.IDENTITY, metric="verification_accuracy"),
        _yes_no("eyes_open", "shut", "open", metric="balanced_accuracy"),
        _yes_no("mouth_open", "shut", "open", metric="balanced_accuracy"),
        _yes_no("occlusion", "clear", "occluded", metric="balanced_accuracy"),
        Task(
            name="eyes_occluded",
            kind=Kind.ATTRIBUTES,
            classes=("left_eye", "right_eye"),
            metric="balanced_accuracy",
            mirror=(1, 0),
        ),
        Task(
            name="attributes",
            kind=Kind.ATTRIBUTES,
            classes=("dark_circles", "acne", "spots", "wrinkles"),
            metric="balanced_accuracy",
        ),
        Task(name="attributes40", kind=Kind.ATTRIBUTES, classes=CELEBA_ATTRIBUTES, metric="balanced_accuracy"),
    )
}

# Index of each landmark's partner after mirroring, for the point orders edgeface can mirror.
# Source: five points as in MTFL (Zhang et al. 2014); the published 68-point order (300-W, Sagonas et al. 2013);
# 98 points as in WFLW (Wu et al., CVPR 2018); 106 points as the common mobile detectors number them. A test holds each
# against the symmetric 3-D template of the synthetic faces.
MIRROR_POINTS: dict[int, tuple[int, ...]] = {
    5: (1, 0, 2, 4, 3),
    68: (
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46),
        *(39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
    ),
    98: (
        *range(32, -1, -1),
        *range(46, 41, -1),
        *range(50, 46, -1),
        *range(37, 32, -1),
        *range(41, 37, -1),
        *range(51, 55),
        *range(59, 54, -1),
        *range(72, 67, -1),
        *range(75, 72, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
        *range(82, 75, -1),
        *range(87, 82, -1),
        *range(92, 87, -1),
        *range(95, 92, -1),
        *(97, 96),
    ),
    106: (
        *(0, 17, *range(18, 25), *range(25, 33)),
        *(1, *range(2, 9), *range(9, 17)),
        *(87, 92, 93, 91, 90, 88, 89, 94, 96, 95),
        *(101, 100, 99, 97, 98, 105, 104, 102, 103),
        *(61, 53, 57, 58, 59, 54, 55, 56, 60, 52, 62, 67, 68, 69, 70, 63, 64, 65, 66, 71),
        *(72, 73, 74, 81, 82, 83, 84, 85, 80, 75, 76, 77, 78, 79, 86),
        *(33, 38, 39, 37, 36, 34, 35, 40, 42, 41),
        *(46, 47, 45, 44, 43, 50, 51, 49, 48),
    ),
}

# The two eye points whose distance normalises landmark errors; above five points the outer corners (inter-ocular).
EYES: dict[int, tuple[int, int]] = {5: (0, 1), 68: (36, 45), 98: (60, 72), 106: (35, 93)}
