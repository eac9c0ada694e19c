"""Looks of glTF materials: base colour, its texture with sampler and transform, alpha mode, unlit.

Sources: glTF 2.0 sections 3.8 and 3.9; KHR_texture_transform, KHR_texture_basisu, EXT_texture_webp,
KHR_materials_unlit, KHR_materials_pbrSpecularGlossiness.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.gltf import Gltf
from data_prep.mesh import BLEND, Sampler, Wrap
from data_prep.parts import Look
from data_prep.textures import decode_texture

_WRAPS: dict[int, Wrap] = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_NEAREST = 9728


@dataclass
class Materials:
    """Looks of one file, each texture decoded once."""

    gltf: Gltf
    max_texture: int
    warnings: list[str] = field(default_factory=list)
    images: dict[int | None, ndarray | None] = field(default_factory=dict)

    def look(self, index: int | None) -> tuple[Look, str, Float[ndarray, "2 3"]]:
        """A material's look, the attribute with its texture coordinates, and what transforms them.

        None is the standard's default material: opaque white.
        """
        if index is None:
            return Look(), "TEXCOORD_0", np.eye(2, 3)
        material = self.gltf.entry("materials", index)
        extensions = material.get("extensions", {})
        base = material.get("pbrMetallicRoughness", {})
        names = ("baseColorFactor", "baseColorTexture")
        if "KHR_materials_pbrSpecularGlossiness" in extensions:
            base = extensions["KHR_materials_pbrSpecularGlossiness"]
            names = ("diffuseFactor", "diffuseTexture")
        factor = np.clip(np.array(base.get(names[0], [1.0] * 4), float), 0, 1)
        if factor.shape != (4,) or not np.isfinite(factor).all():
            raise AssetError("unreadable", f"materials[{index}] has a colour of other than four numbers")
        look = Look(factor=factor, cutoff=_cutoff(material), unlit="KHR_materials_unlit" in extensions)
        reference = base.get(names[1])
        if reference is None:
            return look, "TEXCOORD_0", np.eye(2, 3)
        texture = self.gltf.entry("textures", reference.get("index"))
        look.texture, look.sampler = self._image(texture), self._sampler(texture)
        transform = reference.get("extensions", {}).get("KHR_texture_transform", {})
        channel = transform.get("texCoord", reference.get("texCoord", 0))
        return look, f"TEXCOORD_{channel}", _uv_transform(transform)

    def _image(self, texture: dict[str, Any]) -> ndarray | None:
        """Texels of a texture's image, or None with a warning. Compressed alternatives come first."""
        extensions = texture.get("extensions", {})
        source: int | None = texture.get("source")
        for name in ("EXT_texture_webp", "KHR_texture_basisu"):
            source = extensions.get(name, {}).get("source", source)
        if source not in self.images:
            self.images[source] = self._decode(source)
        return self.images[source]

    def _decode(self, source: int | None) -> ndarray | None:
        image = self.gltf.entry("images", source)
        try:
            data = self.gltf.uri(image["uri"]) if "uri" in image else self.gltf.view(image["bufferView"])
            return decode_texture(data, self.max_texture)
        except (AssetError, MemoryError):
            raise
        except FileNotFoundError as error:
            self.warnings.append(f"missing file {error}")
        except Exception as error:  # Pillow's plug-ins raise anything on damaged data
            self.warnings.append(f"unreadable texture ({type(error).__name__}: {error})")
        return None

    def _sampler(self, texture: dict[str, Any]) -> Sampler:
        if "sampler" not in texture:
            return Sampler()
        entry = self.gltf.entry("samplers", texture["sampler"])
        wraps = [_WRAPS.get(entry.get(name, 10497), "repeat") for name in ("wrapS", "wrapT")]
        return Sampler(wraps[0], wraps[1], nearest=entry.get("magFilter") == _NEAREST)


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
