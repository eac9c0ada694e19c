"""MTL material libraries of OBJ files to looks. Colours are sRGB by custom.

Read are `Kd`, `map_Kd` (or `map_Ka` in its absence), `d`, `Tr`, `map_d`, and `Ke` and `map_Ke` of materials
that are black without them; the other statements don't change a base colour. Source: D. Ramey, L. Rose and
L. Tyerman, "MTL material format (Lightwave, OBJ)", 1995.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from data_prep.formats.faces import plain_look
from data_prep.formats.files import Files
from data_prep.formats.obj_text import decode
from data_prep.formats.parts import DEFAULT_GREY, Look
from data_prep.formats.textures import Pictures
from data_prep.mesh import BLEND, Sampler, Wrap
from shapeloom.color import srgb_to_linear

STRAIGHT = np.array([[1.0, 1], [0, 0]])
"""Scale and offset of texture coordinates that are used as they are."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NUM_ARGUMENTS = {
    "blendu": 1, "blendv": 1, "bm": 1, "boost": 1, "cc": 1, "clamp": 1, "colorspace": 1, "imfchan": 1,
    "mm": 2, "texres": 1, "type": 1,
}  # fmt: skip
_VECTORS = ("o", "s", "t")
"""Options of one to three numbers."""
_WRAPS: dict[str, Wrap] = {"on": "clamp", "off": "repeat"}
MAPS = ("map_kd", "map_ka", "map_ke", "map_d")
"""Keywords whose pictures are read."""


@dataclass(frozen=True)
class Material:
    """Statements of one material, and where they stand."""

    folder: str
    """Of the library, relative to the assets' root: names of pictures are relative to it."""
    words: dict[str, str] = field(default_factory=dict)
    """What follows each keyword, which is in lower case."""

    def color(self, keyword: str) -> Float[ndarray, "3"] | None:
        """Linear RGB of `keyword r [g b]`; None where there is no such thing."""
        values = self.words.get(keyword, "").replace(",", ".").split()[:3]
        if not values or not all(_NUMBER.fullmatch(value) for value in values):
            return None  # spectral files and CIE colours, which no exporter writes
        return srgb_to_linear(np.clip([float(value) for value in (values * 3)[:3]], 0, 1))

    def picture(self, keyword: str, files: Files) -> tuple[str, Sampler, Float[ndarray, "2 2"]]:
        """The picture that `map_...` names, "" for none, and how it is laid on."""
        name, sampler, transform = map_options(self.words.get(keyword, ""))
        if "#" in name and files.find(name, self.folder) is None:
            name = _uncommented(name)
        return name, sampler, transform

    def opacity(self) -> float:
        """`d`, or else the inverse of `Tr`; 1 where it has neither or no number."""
        for keyword, opaque in (("d", 1), ("tr", 0)):
            last = (self.words.get(keyword, "").split() or [""])[-1]  # before it may stand -halo
            if keyword in self.words:
                value = float(last) if _NUMBER.fullmatch(last) else opaque
                return float(np.clip(value if keyword == "d" else 1 - value, 0, 1))
        return 1.0


@dataclass(frozen=True)
class Surface:
    """How faces of a material look, with texture coordinates and without."""

    textured: Look
    plain: Look
    transform: Float[ndarray, "2 2"] = field(default_factory=STRAIGHT.copy)
    """Scale and offset of the texture coordinates."""


def read_materials(files: Files, libraries: list[str]) -> dict[str, Material]:
    """Materials of libraries that `find_libraries` found, by name; the first library's win."""
    materials: dict[str, Material] = {}
    for found in libraries:
        folder = PurePosixPath(found).parent.as_posix()
        for name, words in _parse(files.read(found)).items():
            materials.setdefault(name, Material(folder, words))
    return materials


def find_libraries(files: Files, names: list[str]) -> list[str]:
    """Where the libraries are. A statement names one file, whose name may hold blanks, or several."""
    found: list[str] = []
    for name in names:
        plain = _uncommented(name)
        words = next(([word] for word in (name, plain) if files.find(word)), plain.split() or [name])
        found += [place for word in words if (place := _find_library(files, word))]
    return list(dict.fromkeys(found))


def _find_library(files: Files, name: str) -> str | None:
    place = files.find(name)
    if place is None and (place := files.find(f"{files.path.stem}.mtl")):
        # Assets are renamed, and their statements left as they were.
        files.notes.append(f"{name} is taken from {place}")
    elif place is None:
        files.miss(name)
    return place


def _parse(data: bytes) -> dict[str, dict[str, str]]:
    materials: dict[str, dict[str, str]] = {}
    words: dict[str, str] = {}
    for line in re.split(r"[\r\n]+", decode(data)):
        keyword, _, rest = line.strip().replace("\t", " ").partition(" ")
        if keyword.lower() == "newmtl":
            words = materials[rest.strip()] = {}
        elif keyword and not keyword.startswith("#"):
            words[keyword.lower()] = rest.strip() if keyword.lower() in MAPS else _uncommented(rest)
    return materials


def _uncommented(text: str) -> str:
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def map_options(words: str) -> tuple[str, Sampler, Float[ndarray, "2 2"]]:
    """File name, sampler, and scale and offset of what follows `map_Kd`: `-clamp on -s 2 2 1 oak.png`."""
    transform, wrap = STRAIGHT.copy(), _WRAPS["off"]
    rest = words.strip()[:2000]
    while option := re.match(r"-(\w+)\s+(?=\S)", rest):
        name, following = option[1].lower(), rest[option.end() :].split()
        if name in _VECTORS:
            num = next((i for i, word in enumerate(following[:3]) if not _NUMBER.fullmatch(word)), 3)
        elif name in _NUM_ARGUMENTS:
            num = _NUM_ARGUMENTS[name]
        else:  # no option: the file is called so
            break
        values, rest = following[:num], " ".join(rest[option.end() :].split(maxsplit=num)[num:])
        if name == "clamp":
            wrap = _WRAPS.get(values[0], wrap)
        elif name in "so" and values:
            pair = (values * 2)[:2] if len(values) == 1 else values[:2]
            transform["so".index(name)] = [float(value) for value in pair]
    return rest.strip('"'), Sampler(wrap, wrap), transform


def surface(material: Material | None, pictures: Pictures) -> Surface:
    """How a material looks; None is one that the file doesn't have."""
    if material is None:
        grey = plain_look(colored=False)
        return Surface(grey, grey)
    diffuse, opacity = material.color("kd"), material.opacity()
    plain = _tinted(np.full(3, DEFAULT_GREY) if diffuse is None else diffuse, opacity)
    textured, transform = _pictured(material, ("map_kd", "map_ka"), pictures)
    glow = material.color("ke")
    if textured is None and not (diffuse is not None and diffuse.any()) and glow is not None and glow.any():
        plain = _tinted(glow, opacity, unlit=True)
        textured, transform = _pictured(material, ("map_ke",), pictures)
    if textured is None:
        textured = plain
    else:
        # Kd is left out where there is a texture: exporters write black, white or 0.8 there at random.
        textured.factor, textured.unlit = np.array([1, 1, 1, opacity]), plain.unlit
    masked, mask_transform = _masked(material, textured, pictures)
    return Surface(masked, plain, mask_transform if textured.texture is None else transform)


def _tinted(rgb: ndarray, opacity: float, *, unlit: bool = False) -> Look:
    return Look(np.append(rgb, opacity), cutoff=BLEND if opacity < 1 else 0.0, unlit=unlit)


def _pictured(
    material: Material, keywords: tuple[str, ...], pictures: Pictures
) -> tuple[Look | None, Float[ndarray, "2 2"]]:
    """A look with the first of the pictures that can be read, and what transforms its coordinates."""
    for keyword in keywords:
        name, sampler, transform = material.picture(keyword, pictures.files)
        texture = pictures.get(name, material.folder) if name else None
        if texture is not None:
            return Look(texture=texture, sampler=sampler, cutoff=BLEND), transform
    return None, STRAIGHT


def _masked(material: Material, look: Look, pictures: Pictures) -> tuple[Look, Float[ndarray, "2 2"]]:
    """The look with the alpha that `map_d` gives; a picture that is both has its own."""
    name, sampler, transform = material.picture("map_d", pictures.files)
    colors = {material.picture(keyword, pictures.files)[0] for keyword in ("map_kd", "map_ka", "map_ke")}
    mask = pictures.get(name, material.folder) if name and name not in colors else None
    if mask is None:
        return look, transform
    if look.texture is None:
        white = np.full((*mask.shape[:2], 3), 255, np.uint8)
        return replace(look, texture=_with_mask(white, mask), sampler=sampler, cutoff=BLEND), transform
    return replace(look, texture=_with_mask(look.texture, mask)), transform


def _with_mask(texture: UInt8[ndarray, "height width _"], mask: ndarray) -> UInt8[ndarray, "height width 4"]:
    """The texture with the mask's grey as its alpha, at the texture's size."""
    grey = Image.fromarray(np.ascontiguousarray(mask[..., :3])).convert("L")
    alpha = np.asarray(grey.resize((texture.shape[1], texture.shape[0]), Image.Resampling.BILINEAR))
    return np.concatenate([texture[..., :3], alpha[..., None]], axis=2)
