"""Looks of glTF materials: base colour, its texture with sampler and transform, alpha mode, unlit.

Whatever is damaged or missing about a material costs that and a warning, never the asset. Two kinds of
surface get a base colour that the file doesn't call so: metals of the old specular-glossiness model, whose
colour is their specular one, and black surfaces that glow, which are seen in the colour that they emit.
Sources: glTF 2.0 sections 3.8 and 3.9; KHR_texture_transform, KHR_texture_basisu, EXT_texture_webp,
EXT_texture_avif, KHR_materials_unlit, KHR_materials_pbrSpecularGlossiness and the conversion in its examples.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from data_prep.failures import AssetError
from data_prep.formats.gltf import TECHNIQUES, Gltf
from data_prep.formats.parts import Look
from data_prep.formats.textures import decode_texture
from data_prep.mesh import BLEND, Sampler, Wrap
from shapeloom.color import SRGB_DECODE, linear_to_srgb

_WRAPS: dict[int, Wrap] = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_NEAREST = 9728
_COMPRESSED = ("EXT_texture_webp", "KHR_texture_basisu", "EXT_texture_avif")
"""Extensions with an alternative to a texture's plain picture, tried first."""
_DIELECTRIC = 0.04
"""Reflectance of what is no metal, seen from the front."""
_BLACK = 0.02
"""Linear light below which a base colour counts as black."""
_SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"


@dataclass
class Surface:
    """A material as read: its look, and where its texture coordinates come from."""

    look: Look
    channel: str = "TEXCOORD_0"
    uv_transform: Float[ndarray, "2 3"] = field(default_factory=lambda: np.eye(2, 3))
    tinted: bool = True
    """Whether vertex colours multiply the look's colour, not only its alpha."""

    def lies_like(self, other: "Surface") -> bool:
        """Whether both textures have the same place at each point."""
        return self.channel == other.channel and np.array_equal(self.uv_transform, other.uv_transform)


@dataclass
class Materials:
    """Looks of one file, each texture decoded once."""

    gltf: Gltf
    max_texture: int
    images: dict[int, ndarray | None] = field(default_factory=dict)
    surfaces: dict[int, Surface] = field(default_factory=dict)

    def surface(self, index: Any) -> Surface:
        """A material by its number; for None and one that isn't there the default, opaque white."""
        if index is None:
            return Surface(Look())
        if index not in self.surfaces:
            try:
                self.surfaces[index] = self._surface(self.gltf.entry("materials", index))
            except (AssetError, AttributeError, LookupError, TypeError, ValueError) as error:
                if isinstance(error, AssetError) and error.reason != "unreadable":
                    raise
                self.warn(f"damaged material {index}: {error}")
                return Surface(Look())
        return self.surfaces[index]

    def warn(self, message: str) -> None:
        """Adds a line to the asset's warnings, once."""
        if message not in self.gltf.warnings:
            self.gltf.warnings.append(message)

    def _surface(self, material: dict[str, Any]) -> Surface:
        extensions = material.get("extensions", {})
        if any(name in extensions for name in TECHNIQUES):
            self.warn("a material has a shader of its own, which isn't read")
        base, names = material.get("pbrMetallicRoughness", {}), ("baseColorFactor", "baseColorTexture")
        if _SPECULAR_GLOSSINESS in extensions:
            base, names = extensions[_SPECULAR_GLOSSINESS], ("diffuseFactor", "diffuseTexture")
        look = Look(
            factor=_factor(base.get(names[0], [1.0] * 4), 4),
            cutoff=_cutoff(material),
            unlit="KHR_materials_unlit" in extensions,
        )
        surface = self._textured(look, base.get(names[1]))
        if names[0] == "diffuseFactor":
            surface = self._metal(surface, base)
        return self._glow(surface, material)

    def _textured(self, look: Look, reference: dict[str, Any] | None) -> Surface:
        """A surface of this look with the texture that the reference names, if there is one to be had."""
        if reference is None:
            return Surface(look)
        try:
            texture = self.gltf.entry("textures", reference.get("index"))
        except AssetError as error:
            self.warn(f"missing texture: {error.message}")
            return Surface(look)
        look.texture, look.sampler = self._image(texture), self._sampler(texture)
        transform = reference.get("extensions", {}).get("KHR_texture_transform", {})
        channel = transform.get("texCoord", reference.get("texCoord", 0))
        return Surface(look, f"TEXCOORD_{channel}", _uv_transform(transform))

    def _image(self, texture: dict[str, Any]) -> UInt8[ndarray, "height width 4"] | None:
        """Texels of the first of a texture's pictures that can be decoded; None if none can; warns."""
        extensions = texture.get("extensions", {})
        sources = [extensions[name].get("source") for name in _COMPRESSED if name in extensions]
        sources.append(texture.get("source"))
        sources = [source for source in sources if source is not None]
        if not sources:
            names = ", ".join(sorted(extensions)) or "none at all"
            self.warn(f"missing texture: it has no picture that is read here ({names})")
        for last, source in enumerate(sources, 1 - len(sources)):
            if source not in self.images:
                self.images[source] = self._decode(source, alone=last == 0)
            if self.images[source] is not None:
                return self.images[source]
        return None

    def _decode(self, source: int, *, alone: bool) -> ndarray | None:
        """alone: there is no other picture to fall back on, for want of a decoder."""
        try:
            image = self.gltf.entry("images", source)
            data = self.gltf.uri(image["uri"]) if "uri" in image else self.gltf.view(image["bufferView"])
            return decode_texture(data, self.max_texture, self.gltf.warnings)
        except MemoryError:
            raise
        except AssetError as error:
            if error.reason != "unreadable" and (alone or error.reason != "unsupported"):
                raise
            self.warn(f"unreadable texture {source} ({error.message})")
        except FileNotFoundError:  # `files` keeps account of them
            pass
        except Exception as error:  # Pillow's plug-ins raise anything on damaged data
            self.warn(f"unreadable texture {source} ({type(error).__name__}: {error})")
        return None

    def _sampler(self, texture: dict[str, Any]) -> Sampler:
        if "sampler" not in texture:
            return Sampler()
        try:
            entry = self.gltf.entry("samplers", texture["sampler"])
        except AssetError as error:
            self.warn(f"missing sampler, so its texture repeats: {error.message}")
            return Sampler()
        wraps = [_WRAPS.get(entry.get(name, 10497), "repeat") for name in ("wrapS", "wrapT")]
        return Sampler(wraps[0], wraps[1], nearest=entry.get("magFilter") == _NEAREST)

    def _metal(self, surface: Surface, base: dict[str, Any]) -> Surface:
        """The surface with its specular colour as far as it is a metal.

        A specular colour that the file leaves out is taken for a dielectric's. The standard's default of 1
        would make mirrors of all that exporters leave bare.
        """
        reference = base.get("specularGlossinessTexture")
        if "specularFactor" not in base and reference is None:
            return surface
        specular = _factor(base.get("specularFactor", [1.0] * 3), 3)
        gloss = self._textured(Look(), reference)
        look, texels = surface.look, gloss.look.texture
        if reference is not None and texels is None:
            return surface
        if texels is not None and look.texture is None:  # it brings its coordinates
            look.sampler, surface = gloss.look.sampler, replace(gloss, look=look)
        elif texels is not None and not gloss.lies_like(surface):
            self.warn("a specular texture has other coordinates than the diffuse one: left out")
            return surface
        if texels is None and look.texture is None:
            look.factor[:3] = metal_base_color(look.factor[None, :3], specular[None])[0]
            return surface
        diffuse = look.texture if look.texture is not None else np.full_like(texels, 255)
        if texels is None:
            shine = np.broadcast_to(specular, (*diffuse.shape[:2], 3))
        else:
            size = (diffuse.shape[1], diffuse.shape[0])
            resized = Image.fromarray(np.ascontiguousarray(texels[..., :3])).resize(size)
            shine = SRGB_DECODE[np.asarray(resized)] * specular
        mixed = metal_base_color(SRGB_DECODE[diffuse[..., :3]] * look.factor[:3], shine)
        rgb = np.rint(linear_to_srgb(mixed) * 255).astype(np.uint8)
        look.texture = np.concatenate([rgb, diffuse[..., 3:]], axis=2)
        look.factor = np.array([1, 1, 1, look.factor[3]])
        return surface

    def _glow(self, surface: Surface, material: dict[str, Any]) -> Surface:
        """The colour that a black surface emits in place of its black; others are seen by their own."""
        emitted = _factor(material.get("emissiveFactor", [0.0] * 3), 3)
        if not emitted.any() or not _is_black(surface.look):
            return surface
        look = surface.look
        factor = np.append(emitted, look.factor[3])
        glow = Look(factor=factor, cutoff=look.cutoff, unlit=True)
        glowing = self._textured(glow, material.get("emissiveTexture"))
        if "emissiveTexture" in material and glow.texture is None:
            return surface  # a glow that can't be read leaves the surface as it is, with the warning
        glowing.tinted = False
        return glowing


def metal_base_color(diffuse: Float[ndarray, "*n 3"], specular: Float[ndarray, "*n 3"]) -> ndarray:
    """Base colour of specular-glossiness colours, all linear: the specular one as far as they say metal.

    What is no metal keeps its diffuse colour. Gold, diffuse (0, 0, 0) and specular (1, 0.77, 0.34), gives the
    latter. Source: the extension's conversion between workflows, which solves for the metalness whose mixture
    of dielectric and metal has both brightnesses.
    """
    strength = 1 - specular.max(axis=-1, keepdims=True)
    matt, shine = _brightness(diffuse), _brightness(specular)
    b = matt * strength / (1 - _DIELECTRIC) + shine - 2 * _DIELECTRIC
    root = np.sqrt(np.maximum(b * b - 4 * _DIELECTRIC * (_DIELECTRIC - shine), 0))
    metallic = np.where(shine < _DIELECTRIC, 0, np.clip((root - b) / (2 * _DIELECTRIC), 0, 1))
    metal = (specular - _DIELECTRIC * (1 - metallic)) / np.maximum(metallic, 1e-6)
    return np.clip(diffuse + (np.clip(metal, 0, 1) - diffuse) * metallic**2, 0, 1)


def _brightness(rgb: ndarray) -> ndarray:
    return np.sqrt((rgb**2) @ np.array([0.299, 0.587, 0.114]))[..., None]


def _is_black(look: Look) -> bool:
    brightest = SRGB_DECODE[look.texture[..., :3].max(axis=(0, 1))] if look.texture is not None else 1.0
    return bool((look.factor[:3] * brightest).max() <= _BLACK)


def _factor(values: Any, count: int) -> Float[ndarray, " count"]:
    factor = np.clip(np.array(values, float), 0, 1)
    if factor.shape != (count,) or not np.isfinite(factor).all():
        raise AssetError("unreadable", f"a colour of other than {count} numbers")
    return factor


def _cutoff(material: dict[str, Any]) -> float:
    match material.get("alphaMode", "OPAQUE"):
        case "MASK":
            # A cutoff of 0 hides nothing, and one above 1 everything: both are what the standard says.
            return float(material.get("alphaCutoff", 0.5))
        case "BLEND":
            return BLEND
        case _:
            return 0.0


def _uv_transform(transform: dict[str, Any]) -> Float[ndarray, "2 3"]:
    """[u', v'] = matrix @ [u, v, 1] in glTF's texture space, whose origin is at the top left.

    Positive rotations turn coordinates counter-clockwise as seen with v pointing down, which is the wording
    of the extension and what three.js does; the extension's code sample turns the other way.
    """
    (x, y), (sx, sy) = transform.get("offset", [0, 0]), transform.get("scale", [1, 1])
    cos, sin = math.cos(transform.get("rotation", 0)), math.sin(transform.get("rotation", 0))
    return np.array([[sx * cos, sy * sin, x], [-sx * sin, sy * cos, y]])
