"""What assets are called: captions cleaned, words out of names, name groups and their splits."""

import html
import re
import unicodedata

from pydantic import Field

from shapeloom.config import Config
from shapeloom.seed import derive_seed

SPLITS = ("train", "val", "test", "judge")
MAX_CAPTION = 400
"""Characters; a CLIP text encoder reads about 300 of them."""

_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
_ADDRESS = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)
_FILE_NAME = re.compile(r"(\S+)\.(glb|gltf|obj|ply|stl|off|dae|fbx|blend|max|3ds|usdz?|zip)", re.IGNORECASE)
_VERSION = re.compile(r"\b(v ?\d+|final|export(ed)?|copy|untitled)\b")


class SplitFractions(Config):
    """Shares of the name groups, for assets whose split no captions file names; their sum is 1."""

    train: float = Field(0.8, ge=0, le=1, description="what models learn from")
    val: float = Field(0.05, ge=0, le=1, description="held out, to choose by")
    test: float = Field(0.05, ge=0, le=1, description="held out, to report")
    judge: float = Field(
        default=0.1, ge=0, le=1, description="assets that train the evaluation's own judge alone"
    )


def clean_caption(text: str) -> str:
    """One line of words, or "" where there are none.

    Control characters, HTML and addresses go; a file's name becomes its words, without extension and version
    (`Old_Chair_v2.final.obj` -> "old chair"); what is longer than `MAX_CAPTION` is cut at a word.
    """
    text = _ADDRESS.sub(" ", _TAG.sub(" ", html.unescape(text[: 20 * MAX_CAPTION])))
    # Format characters (category Cf) are invisible, such as zero-width spaces and byte-order marks.
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    text = " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in text).split())
    if name := _FILE_NAME.fullmatch(text):
        text = " ".join(_VERSION.sub(" ", spaced(name[1])).split())
    if len(text) > MAX_CAPTION:
        head, _, _ = text[:MAX_CAPTION].rpartition(" ")
        text = (head or text[:MAX_CAPTION]).rstrip(" ,;:-")
    return text if any(c.isalpha() for c in text) else ""


def spaced(name: str) -> str:
    """Words of a file name: `WaterBottle_2-old` -> "water bottle 2 old"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])", " ", name)
    return " ".join(re.split(r"[\s_\-.]+", name)).strip().lower()


def group_of_name(name: str) -> str:
    """A name without its trailing numbers, lower case: `Tree_02` -> "tree"."""
    return re.sub(r"[\s_\-.()0-9]+$", "", name.lower()) or name.lower()


def split_of(group: str, fractions: SplitFractions) -> str:
    """The side on which a name group stands: a function of its hash and the fractions."""
    position, shares = derive_seed("split", group) / 2**63, fractions.model_dump()
    for name in SPLITS:
        position -= shares[name]
        if position < 0:
            return name
    return "train"  # rounding of the last share
