"""What the web page is asked for, and the limits of what it takes.

Everything that comes in is taken for hostile: the checks here raise a `UserError` that says why.
"""

from dataclasses import dataclass

from sampling.edit import Layers
from sampling.pipeline import check_prompt
from shapeloom.config import UserError

MAX_PROMPT = 300
MAX_STEPS = 128
MAX_REFINE_STEPS = 400
MAX_GUIDANCE = 20.0
# Larger numbers aren't exact in a browser.
MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class Order:
    """A new object: words, pictures of it or both. Whatever a browser or a script sent: unchecked as yet."""

    prompt: object
    negative: object
    images: tuple[object, ...]
    """Paths of uploads."""
    seed: object
    steps: object
    guidance: object


@dataclass(frozen=True)
class Edit:
    """A change of an object that is there; unchecked, as an `Order` is."""

    source: str
    """Its key."""
    prompt: object
    layers: object
    strength: object
    seed: object
    steps: object
    guidance: object
    upload: object = None
    """Path of an uploaded 3D file or latent, which is changed in the object's stead."""


@dataclass(frozen=True)
class Refinement:
    """A change of an object, step by step, by the view model; unchecked, as an `Order` is."""

    source: str
    """Its key."""
    prompt: object
    layers: object
    steps: object
    seed: object
    upload: object = None
    """As an `Edit`'s."""


@dataclass(frozen=True)
class Turned:
    """Views all around, of a picture, words or both; unchecked, as an `Order` is."""

    prompt: object
    image: object
    """Path of an upload, or None."""
    seed: object


def text_of(text: object, *, may_be_empty: bool = False) -> str:
    """Returns a prompt."""
    if not isinstance(text, str):
        raise UserError("A prompt is text.")
    if len(text) > MAX_PROMPT:
        raise UserError(f"Prompts on this page have at most {MAX_PROMPT} characters, not {len(text):,}.")
    return check_prompt(text, may_be_empty=may_be_empty)


def layers_of(layers: object) -> Layers:
    """Returns what may change."""
    match layers:
        case "all" | "geometry" | "color":
            return layers
    raise UserError("What changes is all, geometry or color.")


def numbers_of(asked: Order | Edit) -> tuple[int, int, float]:
    """Returns seed, steps and guidance."""
    seed = number_of("The seed", asked.seed, 0, MAX_SEED)
    steps = number_of("The number of steps", asked.steps, 1, MAX_STEPS)
    return int(seed), int(steps), number_of("Guidance", asked.guidance, 0, MAX_GUIDANCE)


def number_of(name: str, value: object, low: int | float, high: int | float) -> float:
    """Returns a number within its limits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"{name} must be a number from {low:g} to {high:,.15g}.")
    return float(value)
