"""Looks of COLLADA materials: diffuse colour or texture, or emission where nothing else is seen.

Whatever is damaged or missing about a material costs that and a warning, never the mesh. Colours are sRGB by
custom. Transparency is ignored, since exporters don't agree on what it means.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_prep.failures import AssetError
from data_prep.formats.collada import Document, Node, floats
from data_prep.formats.faces import plain_look
from data_prep.formats.parts import Look
from data_prep.formats.textures import Pictures
from data_prep.mesh import BLEND, Sampler, Wrap
from shapeloom.color import srgb_to_linear

_SAME = 1e-3
"""Linear light: less than a step of 8 bits where it is bright."""
_SHADERS = ("lambert", "phong", "blinn", "constant")
_WRAPS: dict[str, Wrap] = {"MIRROR": "mirror", "CLAMP": "clamp", "BORDER": "clamp", "NONE": "clamp"}


@dataclass
class Surface:
    """A material as read; without colour and texture it is grey."""

    color: ndarray | None = None
    """Linear RGB."""
    texture: UInt8[ndarray, "height width 4"] | None = None
    sampler: Sampler = field(default_factory=Sampler)
    unlit: bool = False
    channel: tuple[str, int] = ("TEXCOORD", 0)
    """Semantic and set of its texture's coordinates."""

    def look(self, tint: Float[ndarray, "rows 4"] | None) -> Look:
        """The look of a part; tint: its vertex colours, which multiply the rest.

        A diffuse colour that is one of them is no factor: trimesh repeats the commonest there.
        """
        if self.texture is not None:
            return Look(texture=self.texture, sampler=self.sampler, cutoff=BLEND, unlit=self.unlit)
        repeated = (
            self.color is not None
            and tint is not None
            and bool(np.any(np.all(np.abs(tint[:, :3] - self.color) < _SAME, axis=1)))
        )
        if self.color is not None and not repeated:
            return Look(np.append(self.color, 1), unlit=self.unlit)
        return plain_look(colored=tint is not None)


@dataclass
class Materials:
    """Surfaces of one document, each read once."""

    document: Document
    max_texture: int
    surfaces: dict[tuple[Any, ...], Surface] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures = Pictures(self.document.files, self.max_texture, self.document.warnings)

    def surface(self, symbol: str | None, bindings: dict[str, Node]) -> Surface:
        """The surface of primitives that use this symbol."""
        if symbol is None:
            return Surface()
        binding = bindings.get(symbol)
        # Some exporters bind nothing and write the material's own id.
        url = symbol if binding is None else binding.get("target")
        channels = {} if binding is None else _channels(binding)
        key = (url, *sorted(channels.items()))
        if key not in self.surfaces:
            self.surfaces[key] = self._surface(url, channels)
        return self.surfaces[key]

    def _surface(self, url: str | None, channels: dict[str, tuple[str, int]]) -> Surface:
        material = self.document.target(url, "material")
        instance = None if material is None else material.find("instance_effect")
        effect = None if instance is None else self.document.target(instance.get("url"), "effect")
        if effect is None:
            return Surface()
        shader = next((found for tag in _SHADERS if (found := effect.find(f".//{tag}")) is not None), None)
        if shader is None:
            self.document.warn(f"left out effect {effect.get('id')!r}: it has no common shader")
            return Surface()
        try:
            diffuse = self._channel(effect, shader.find("diffuse"), channels)
            glow = self._channel(effect, shader.find("emission"), channels)
        except AssetError as error:
            if error.reason != "unreadable":
                raise
            self.document.warn(f"damaged effect {effect.get('id')!r}: {error.message}")
            return Surface()
        black = diffuse is None or (diffuse.color is not None and not diffuse.color.any())
        if glow is not None and black and (glow.texture is not None or np.any(glow.color)):
            glow.unlit = True
            return glow
        return Surface() if diffuse is None else diffuse

    def _channel(
        self, effect: Node, value: Node | None, channels: dict[str, tuple[str, int]]
    ) -> Surface | None:
        """What a shader's diffuse or emission is; None if it isn't there or its texture can't be read."""
        if value is None:
            return None
        texture, color = value.find("texture"), value.find("color")
        if value.find("param") is not None:
            color = _parameter(effect, value.find("param").get("ref"))
        if texture is not None:
            return self._textured(effect, texture, channels)
        if color is None:
            return None
        rgb = floats(color.text)
        if len(rgb) < 3 or not np.isfinite(rgb[:3]).all():
            raise AssetError("unreadable", f"{color.text!r} is no colour")
        return Surface(srgb_to_linear(np.clip(rgb[:3], 0, 1)))

    def _textured(self, effect: Node, texture: Node, channels: dict[str, tuple[str, int]]) -> Surface | None:
        name = texture.get("texture")
        sampler = _parameter(effect, name, "sampler2D")
        image = self._image(effect, name, sampler)
        path = None if image is None else image.findtext("init_from/ref") or image.findtext("init_from")
        if not path or not path.strip():
            self.document.warn(f"missing image of texture {name!r}")
            return None
        texels = self.pictures.get(path.strip())
        if texels is None:
            return None
        channel = channels.get(texture.get("texcoord", ""), ("TEXCOORD", 0))
        return Surface(texture=texels, sampler=_lookup(sampler), channel=channel)

    def _image(self, effect: Node, name: str | None, sampler: Node | None) -> Node | None:
        """By way of sampler and surface, or (as some exporters have it) named at once."""
        url = name
        if sampler is not None and sampler.find("instance_image") is not None:  # 1.5
            url = sampler.find("instance_image").get("url")
        elif sampler is not None:
            surface = _parameter(effect, sampler.findtext("source"), "surface")
            url = None if surface is None else surface.findtext("init_from")
        return self.document.target(url, "image")


def _lookup(sampler: Node | None) -> Sampler:
    if sampler is None:
        return Sampler()
    words = [(sampler.findtext(tag) or "").strip() for tag in ("wrap_s", "wrap_t", "magfilter")]
    u, v = (_WRAPS.get(word, "repeat") for word in words[:2])
    return Sampler(u, v, nearest=words[2] == "NEAREST")


def _channels(binding: Node) -> dict[str, tuple[str, int]]:
    """Semantic and set of the coordinates by the names with which effects ask for them."""
    return {
        item.get("semantic", ""): (item.get("input_semantic", "TEXCOORD"), int(item.get("input_set") or 0))
        for item in binding.findall("bind_vertex_input")
        if (item.get("input_set") or "0").isdecimal()
    }


def _parameter(effect: Node, name: str | None, kind: str | None = None) -> Node | None:
    """What an effect's <newparam> of this name holds: the element `kind`, or its only one."""
    for item in effect.iter("newparam"):
        if item.get("sid") == (name or "").strip():
            return item.find(kind) if kind else next(iter(item), None)
    return None
