"""What chance decides: the person, and one shot of that person.

Random numbers come from Philox, a counter-based generator, keyed by (seed, stream, index), so a face is a pure function
of its seed and index. Both functions draw a fixed number of values, so changing how one value is used moves no other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces.head import MODE_INDEX, MODE_NAMES
from edgeface.tasks import EXPRESSIONS

PER_PERSON: Final = 4  # consecutive indices that show one person

_PERSON_STREAM: Final = 0x9E3779B97F4A7C15
_SHOT_STREAM: Final = 0xC2B2AE3D27D4EB4F

RGB = tuple[float, float, float]

_PERSON_MODES: Final = MODE_NAMES[: MODE_INDEX["child"]]

# Skin from light to dark and hair colours, as display RGB under white light.
_SKIN: Final = np.array(
    [
        [247, 214, 193],
        [238, 197, 170],
        [226, 178, 147],
        [205, 154, 120],
        [176, 124, 90],
        [140, 94, 66],
        [104, 68, 50],
        [74, 48, 38],
    ],
    dtype=np.float64,
)
_HAIR: Final = np.array(
    [
        [24, 20, 19],
        [38, 28, 23],
        [62, 42, 30],
        [92, 62, 40],
        [128, 88, 52],
        [176, 134, 82],
        [206, 172, 118],
        [124, 58, 34],
    ],
    dtype=np.float64,
)
_GREY: Final = np.array([186.0, 184.0, 180.0])
_IRIS: Final = np.array(
    [[46, 30, 22], [60, 40, 26], [84, 58, 34], [104, 92, 56], [84, 106, 92], [92, 120, 148], [120, 140, 152]],
    dtype=np.float64,
)


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity, so that what is made of a person can be kept
class Person:
    """What stays from shot to shot. Lengths are in eye distances, colours are RGB 0 to 255.

    Attributes:
        modes: Amount of every head mode; expression modes are 0 here.
        feminine: In [0, 1]; the one number that jaw, brows, nose, lips, hair and make-up lean on.
        age: Years.
        beauty: In [0, 1]; see the docstring of `edgeface.data.synthetic`.
        hairline: Height of the hair's edge above the brow at the middle of the forehead.
        hair_length: 0 shaved, 0.3 short, 1 to the shoulders.
        texture: Which of the eight sheets of skin grain and strands.
        flush: How much blood shows in cheeks and nose.
        marks: (50, 2) canonical places of acne and spots, shown or not.
    """

    modes: NDArray[np.float32]
    feminine: float
    age: float
    beauty: float
    skin: RGB
    lip: RGB
    hair: RGB
    brow: RGB
    iris: RGB
    hairline: float
    hair_peak: float
    hair_length: float
    hair_volume: float
    fringe: float
    parting: float
    bald: bool
    brow_thick: float
    brow_arch: float
    lips: float
    beard: float
    make_up: float
    wrinkles: float
    dark_circles: bool
    acne: bool
    spots: bool
    eyelid: float
    glasses: int
    texture: int
    flush: float
    marks: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What changes from shot to shot. Angles are radians; yaw turns to the image's right, pitch up, roll clockwise.

    Attributes:
        expression: Index into EXPRESSIONS, or len(EXPRESSIONS) for contempt.
        modes: Amount of every head mode; person modes are 0 here.
        features: Amount of every feature mode.
        scale: Eye distance of the frontal head over the side of the nominal crop.
        shift: Offset of the five points' box centre from the crop's centre, in crop sides.
        glasses: 0 none, 1 eyeglasses, 2 dark.
        occluder: 0 none, else the kind drawn.
    """

    yaw: float
    pitch: float
    roll: float
    camera: float
    scale: float
    shift: tuple[float, float]
    expression: int
    smile: float
    modes: NDArray[np.float32]
    features: dict[str, float]
    glasses: int
    occluder: int
    light: NDArray[np.float64]
    draws: list[float]


def _stream(seed: int, stream: int, index: int) -> np.random.Generator:
    key = np.array([(seed ^ stream) & 0xFFFFFFFFFFFFFFFF, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _pick(table: NDArray[np.float64], where: float) -> NDArray[np.float64]:
    """A colour between two neighbouring rows of a table; `where` in [0, 1]."""
    place = where * (len(table) - 1)
    low = min(int(place), len(table) - 2)
    return np.asarray(table[low] + (place - low) * (table[low + 1] - table[low]))


def _rgb(colour: NDArray[np.float64]) -> RGB:
    red, green, blue = np.clip(colour, 0.0, 255.0).tolist()
    return red, green, blue


def _between(draw: float, low: float, high: float) -> float:
    return low + draw * (high - low)


def person_of(index: int) -> int:
    """The person that face `index` shows."""
    return index // PER_PERSON


def draw_person(seed: int, person: int) -> Person:
    """The person number `person` of the stream `seed`."""
    generator = _stream(seed, _PERSON_STREAM, person)
    u: list[float] = generator.random(48).tolist()
    normal = np.clip(generator.standard_normal(len(_PERSON_MODES)), -2.4, 2.4)
    across, along, where = generator.random((3, 50))
    marks_x = np.where(where < 0.5, -1.0, 1.0) * (0.18 + 0.72 * across)
    marks_y = np.where(where * 8 % 1 < 0.25, -0.85 + 0.45 * along, 0.25 + 1.2 * along)

    feminine = _between(u[0], 0.0, 0.40) if u[1] < 0.5 else _between(u[0], 0.60, 1.0)
    lean = 2.0 * feminine - 1.0
    age = (
        _between(u[2], 18.0, 60.0)
        if u[3] < 0.72
        else (_between(u[2], 3.0, 18.0) if u[3] < 0.86 else _between(u[2], 60.0, 88.0))
    )
    child = min(max((16.0 - age) / 13.0, 0.0), 1.0)
    adult = 1.0 - child

    modes = np.zeros(len(MODE_NAMES), dtype=np.float32)
    modes[: len(_PERSON_MODES)] = normal
    for name, amount in (
        ("jaw_width", -0.8),
        ("chin_long", -0.5),
        ("chin_out", -0.5),
        ("nose_wide", -0.4),
        ("nose_out", -0.3),
        ("eye_size", 0.5),
        ("eye_tall", 0.4),
        ("brow_up", 0.6),
        ("brow_ridge", -0.9),
        ("length", -0.5),
        ("cheekbone", 0.3),
        ("nose_tip", 0.5),
    ):
        modes[MODE_INDEX[name]] += amount * lean * adult
    modes[MODE_INDEX["child"]] = child
    modes[MODE_INDEX["nose_long"]] += 0.02 * max(age - 30.0, 0.0)
    modes[MODE_INDEX["ear_out"]] += 0.01 * max(age - 30.0, 0.0)
    modes[MODE_INDEX["cheek_full"]] -= 0.015 * max(age - 45.0, 0.0)

    dark = u[4] ** 1.25  # skin tone: all of the table, lighter ones somewhat more often
    skin = _pick(_SKIN, dark) * np.array([_between(u[5], 0.96, 1.04), 1.0, _between(u[6], 0.94, 1.05)])
    hair_place = u[7] * (0.45 if dark > 0.45 else 1.0)
    hair = _pick(_HAIR, hair_place)
    grey = min(max((age - 38.0) / 40.0 + _between(u[8], -0.35, 0.30), 0.0), 0.95)
    hair = hair + grey * (_GREY - hair)
    brow = 0.75 * hair + 0.25 * 0.35 * skin - 12.0
    iris = _pick(_IRIS, u[9] * (0.35 if dark > 0.45 or hair_place < 0.2 else 1.0))
    make_up = u[10] * min(max((lean - 0.1) * 1.2, 0.0), 1.0) * adult if u[11] < 0.6 else 0.0
    lip_tint = np.array([0.80, 0.52, 0.54]) if dark < 0.6 else np.array([0.80, 0.60, 0.62])
    lip = skin * (lip_tint + 0.10 * (u[12] - 0.5))
    lip = lip + 0.7 * make_up * (np.array([_between(u[13], 130, 200), 30.0, _between(u[14], 40, 80)]) - lip)

    bald = lean < 0 and age > 28 and u[15] < 0.03 + 0.006 * max(age - 28.0, 0.0)
    recede = max(age - 30.0, 0.0) * 0.006 * (u[16] if lean < 0 else 0.2 * u[16])
    long_hair = u[17] < (0.78 if lean > 0 else 0.07)
    hair_length = _between(u[18], 0.45, 1.0) if long_hair else _between(u[18], 0.10, 0.38)
    beard = 0.0
    if lean < -0.1 and age > 18:
        beard = _between(u[19], 0.45, 1.0) if u[20] < 0.22 else (_between(u[19], 0.05, 0.35) if u[20] < 0.6 else 0.0)

    wrinkles = min(max((age - 28.0) / 50.0 + _between(u[21], -0.12, 0.12), 0.0), 1.0)
    dark_circles = u[22] < 0.25
    acne = u[23] < (0.35 if 12 < age < 26 else 0.08)
    spots = u[24] < (0.10 if age < 50 else 0.35)
    shape = float(np.sqrt(np.mean(normal**2)))
    # measured spread of `shape` over people is 0.13 around 0.97; the rest are blemishes drawn on the skin
    beauty = 0.58 - 1.4 * (shape - 0.97) - 0.12 * acne - 0.08 * dark_circles - 0.06 * spots
    beauty += 0.05 * (1.0 - abs(float(normal[MODE_INDEX["mouth_side"]]))) + 0.05 * (
        1.0 - abs(float(normal[MODE_INDEX["nose_side"]]))
    )

    glasses = 0 if u[25] > 0.22 else (1 if u[26] < 0.72 else 2)
    return Person(
        modes=modes,
        feminine=feminine,
        age=age,
        beauty=float(min(max(beauty, 0.0), 1.0)),
        skin=_rgb(skin),
        lip=_rgb(lip),
        hair=_rgb(hair),
        brow=_rgb(brow),
        iris=_rgb(iris),
        hairline=_between(u[27], 0.52, 0.86) + recede + 0.1 * child,
        hair_peak=_between(u[28], -0.5, 1.0),
        hair_length=0.0 if bald else hair_length,
        hair_volume=_between(u[29], 0.04, 0.20) * (1.3 if long_hair else 1.0),
        fringe=_between(u[30], 0.3, 1.0) if u[31] < (0.30 if lean > 0 else 0.15) else 0.0,
        parting=_between(u[32], -0.8, 0.8),
        bald=bald,
        brow_thick=_between(u[33], -0.35, 0.75) - 0.40 * lean * adult - 0.3 * child,
        brow_arch=_between(u[34], -0.3, 0.9) + 0.3 * lean,
        lips=_between(u[35], -0.9, 1.0) + 0.25 * lean + 0.4 * dark,
        beard=beard,
        make_up=make_up,
        wrinkles=wrinkles,
        dark_circles=dark_circles,
        acne=acne,
        spots=spots,
        eyelid=_between(u[36], 0.78, 1.04),
        glasses=glasses,
        texture=int(u[37] * 8),
        flush=_between(u[38], 0.05, 0.15),
        marks=np.stack([marks_x, marks_y], -1),
    )


# Amounts of each expression's actions at full strength: head modes, then lids (factor), gap, teeth, brow slope.
_ACTIONS: Final[dict[str, dict[str, float]]] = {
    "happy": {"smile": 1.0, "lids": 0.80},
    "angry": {"lower": 1.0, "frown": 0.35, "lids": 0.86, "lips": -0.5},
    "calm": {"lids": 1.0},
    "scared": {"raise": 0.55, "raise_inner": 0.8, "stretch": 0.8, "lids": 1.30},
    "sad": {"raise_inner": 1.0, "frown": 1.0, "lids": 0.74, "slope": -0.4},
    "disgust": {"wrinkle": 1.0, "lower": 0.55, "frown": 0.4, "lids": 0.66},
    "surprised": {"raise": 1.0, "pucker": 0.35, "lids": 1.38},
    "contempt": {"lids": 0.92},
}
_NAMES: Final = (*EXPRESSIONS, "contempt")
_CUMULATIVE: Final = np.cumsum([0.40, 0.07, 0.25, 0.06, 0.07, 0.06, 0.07, 0.02])


def draw_shot(seed: int, index: int, person: Person) -> Shot:
    """Face number `index` of the stream `seed`: pose, expression, light and what the camera adds."""
    generator = _stream(seed, _SHOT_STREAM, index)
    u: list[float] = generator.random(128).tolist()
    n: list[float] = generator.standard_normal(24).tolist()

    if u[0] < 0.52:
        yaw = 10.0 * n[0]
    elif u[0] < 0.85:
        yaw = _between(u[1], -48.0, 48.0)
    else:
        yaw = math.copysign(_between(u[1], 32.0, 74.0), u[2] - 0.5)
    yaw = min(max(yaw, -75.0), 75.0)
    pitch = min(max(8.0 * n[1] - 1.0, -28.0), 28.0)
    roll = min(max((5.0 if u[3] < 0.65 else 12.0) * n[2], -40.0), 40.0)

    expression = int(np.searchsorted(_CUMULATIVE, u[4] * _CUMULATIVE[-1], side="right"))
    name = _NAMES[expression]
    strength = _between(u[5], 0.55, 1.0)
    action = dict(_ACTIONS[name])
    lids = 1.0 + strength * (action.pop("lids") - 1.0)
    slope = strength * action.pop("slope", 0.0)
    lips = strength * action.pop("lips", 0.0)
    modes = np.zeros(len(MODE_NAMES), dtype=np.float32)
    for mode, amount in action.items():
        modes[MODE_INDEX[mode]] = amount * strength
    if name == "contempt":
        modes[MODE_INDEX["smirk_left" if u[6] < 0.5 else "smirk_right"]] = strength

    # the mouth: shut, or clearly open; in between no label would be honest
    open_chance = {
        "happy": 0.55,
        "angry": 0.25,
        "calm": 0.18,
        "scared": 0.6,
        "sad": 0.08,
        "disgust": 0.3,
        "surprised": 0.85,
        "contempt": 0.05,
    }
    gap = teeth = jaw = 0.0
    if u[7] < open_chance[name]:
        largest = {"happy": 0.75, "calm": 0.5, "angry": 0.7, "scared": 0.8, "surprised": 1.0}.get(name, 0.45)
        gap = _between(u[8], 0.22, largest)
        jaw = max(gap - 0.2, 0.0) * 0.9
        teeth = 0.3
    elif name == "happy" and u[9] < 0.72:
        teeth = _between(u[10], 0.55, 1.0)  # teeth together, lips apart: the mouth counts as shut
    modes[MODE_INDEX["jaw"]] = jaw
    smile = float(modes[MODE_INDEX["smile"]])

    shut = u[11] < 0.09
    aperture = person.eyelid * min(max(lids, 0.55), 1.4) * _between(u[12], 0.88, 1.06)
    left, right = aperture * _between(u[13], 0.95, 1.05), aperture * _between(u[14], 0.95, 1.05)
    if shut:
        left, right = _between(u[13], 0.0, 0.06), _between(u[14], 0.0, 0.06)

    glasses = person.glasses
    if u[15] < 0.12:
        glasses = 0
    elif u[15] > 0.985:
        glasses = 2

    azimuth, height = math.radians(_between(u[16], -75.0, 75.0)), math.radians(_between(u[17], -5.0, 65.0))
    light = np.array([math.sin(azimuth) * math.cos(height), -math.sin(height), math.cos(azimuth) * math.cos(height)])
    return Shot(
        yaw=math.radians(yaw),
        pitch=math.radians(pitch),
        roll=math.radians(roll),
        camera=_between(u[18], 9.0, 30.0),
        scale=0.364 * math.exp(min(max(0.10 * n[3], -0.25), 0.25)),
        shift=(0.035 * n[4], 0.035 * n[5]),
        expression=expression,
        smile=smile,
        modes=modes,
        features={
            "open_left": left,
            "open_right": right,
            "gaze_x": min(max(0.045 * n[6], -0.1), 0.1) - 0.04 * math.sin(math.radians(yaw)),
            "gaze_y": min(max(0.015 * n[7], -0.03), 0.03),
            "brow_thick": person.brow_thick,
            "brow_arch": person.brow_arch,
            "brow_slope": slope + 0.3 * (u[19] - 0.5),
            "gap": gap,
            "lips": person.lips + lips,
            "teeth": teeth,
        },
        glasses=glasses,
        occluder=0 if u[20] > 0.13 else 1 + int(u[21] * 5),
        light=light,
        draws=u[24:],
    )
