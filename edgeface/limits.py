"""The most that edgeface reads of a file it did not write: every limit in one place, each named in the error it raises.

A file beyond a limit is refused before it is read or unpacked, never cut short. Whoever needs more raises it here.
"""

from __future__ import annotations

# Pictures. Pillow itself warns from this size on (a quarter of a GiB in three bytes a pixel): a bomb of 50,000x50,000
# pixels is a few kB on disk and 7.5 GB in memory.
PICTURE_PIXELS = 1024**3 // 4 // 3
PICTURE_BYTES = 256 << 20
# What face corpora are published in. Pillow knows forty more, one of which starts Ghostscript.
PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

# Label lists: FER2013, whose pictures stand in the table, has 301 MB, and 20,000 characters in its longest line.
LABEL_BYTES = 1 << 30
LABEL_LINE = 1 << 20
LABEL_NAME = 1024  # characters of a path in a list; Linux takes 4,096 bytes, four a letter

# SQLite: AFLW's database has 24,386 faces and some 380,000 points, which take 0.2 s of CPU time and 8 million of
# SQLite's steps; of each face a picture's path is the longest text.
DATABASE_BYTES = 1 << 30
DATABASE_ROWS = 1_000_000  # of one answer
DATABASE_VALUE_BYTES = 64 << 10  # of a text, a row, or the definition of a table
DATABASE_S = 5.0  # of CPU time, of the thread that asks

# .mat files, as they lie and unpacked: 300-W's detections of two thousand faces, the longest list, have one.
MAT_BYTES = 8 << 20

# Shards (tar files). A member is a picture, and has a picture's limit, or says something of one.
TAR_MEMBERS = 1_000_000
TAR_HEADER_BYTES = 64 << 10  # of a long name or a pax header
TAR_PADDING_BYTES = 1 << 20  # empty blocks at the end; GNU tar writes up to 10 KiB unless told otherwise
SAMPLE_BYTES = 1 << 20  # a sample's JSON, class or text
PLACES_BYTES = 32 << 20  # of a table of places; one of TAR_MEMBERS members, with the names edgeface gives, has 9 MB

# TOML and JSON.
RECIPE_BYTES = 256 << 10
TOML_DOTS = 300  # in a line; 106 landmarks have 212
MANIFEST_BYTES = 64 << 20
CURVE_BYTES = 64 << 20
KEY_BYTES = 64 << 10

# What a manifest may say of a network before anything is built by it.
INPUT_PX = 4096
OUTPUTS = 256
OUTPUT_VALUES = 65_536
WEIGHTS_BYTES = 8 << 30

# Golden faces and answers, counted as the arrays' headers promise, not as the compressed file is large.
GOLDEN_BYTES = 512 << 20
GOLDEN_ARRAYS = 4096

# Model files, all parts together: flatbuffers and protobuf hold no more than 2 GiB in one piece.
MODEL_BYTES = 2 << 30
MODEL_FILES = 1000  # of an .mlpackage folder, which has four

# Objects in a TFLite file; the largest networks for phones have a few thousand.
TFLITE_OBJECTS = 1_000_000

# The process that a model file of others is run in first.
TRIAL_S = 120.0
TRIAL_MEMORY_BYTES = 8 << 30  # of address space, most of which runtimes reserve and never touch
TRIAL_WORDS_BYTES = 1 << 20
