"""Captions of a procedural object, composed of what it is, its colours and its parts."""

import numpy as np

from data_prep.procedural.draft import Draft


def captions(
    family: str,
    colour: str,
    draft: Draft,
    rng: np.random.Generator,
    *,
    accent: str,
    accented: tuple[str, ...],
) -> list[str]:
    """Returns different captions, the fullest first, such as "a tall blue chair with red legs and armrests".

    accent: colour of the parts `accented`, "" for none. Every caption names family and colour; the plain
    "a blue chair" is among them.
    """
    plain = f"{colour} {family}"
    full = " ".join([*draft.adjectives[:1], plain])
    # A feature whose part has the accent colour is named there: no "four engines and red engines".
    features = [phrase for phrase in draft.features if phrase.split(maxsplit=1)[-1] not in accented]
    accents = [_accent_phrase(accent, accented)] if accented else []
    templates = [
        plain,
        f"{_article(family)}, {colour}",
        f"{_article(family)} in {colour}",
        f"{_article(family)} that is mostly {colour}",
        f"this {family} is {colour}",
        f"a 3D model of {_article(plain)}",
    ]
    result = [
        _with_parts(full, features + accents),
        _article(plain),
        _article(full),
        _with_parts(plain, accents),
        str(rng.choice(templates)),
    ]
    return list(dict.fromkeys(result))


def _with_parts(phrase: str, parts: list[str]) -> str:
    """Such as "a blue chair with a round back, armrests and red legs"."""
    if not parts:
        return _article(phrase)
    if len(parts) > 1 and " and " not in parts[-1]:
        parts = [*parts[:-2], f"{parts[-2]} and {parts[-1]}"]
    return f"{_article(phrase)} with {', '.join(parts)}"


def _accent_phrase(accent: str, parts: tuple[str, ...]) -> str:
    """Such as "red legs and armrests", or "a red roof and a red door"."""
    if all(_is_plural(part) for part in parts):
        return f"{accent} {' and '.join(parts)}"
    phrases = [f"{accent} {part}" for part in parts]
    return " and ".join(phrase if _is_plural(phrase) else _article(phrase) for phrase in phrases)


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _is_plural(noun: str) -> bool:
    return noun.endswith("s")
