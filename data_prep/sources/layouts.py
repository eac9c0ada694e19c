"""What the path of an asset says of it, in the layouts that people keep assets in.

packs/Tree_02.glb                             "tree" of "packs"
Toy_Car/meshes/model.obj                      "toy car": Google Scanned Objects, Sketchfab, many others
03001627/1a2b3c4d/models/model_normalized.obj "chair": ShapeNet
glbs/000-023/1a2b3c4d.glb                     nothing: Objaverse's own names are ids
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.sources.naming import group_of_name, spaced

_WORDS = """
asset assets base copy d data decimated default dmodels export exported file final geo geometry glb glbs gltf
google high highpoly k lod low lowpoly main mesh meshes model models new node none noname normalised
normalized obj object objects objs off original out output ply poisson poly raw res result root scan scans
scene scenes simplified source src stl texture textured textures trimesh tsdf unnamed untextured untitled
usd usdz v visual visuals watertight
"""
_GENERIC = frozenset(_WORDS.split())
"""Words of file and folder names that say nothing of what is shown."""
_SPLIT_FOLDERS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
_ID = re.compile(r"\d+|(?![a-f]+\d+$)(?=[a-f]*\d)[0-9a-f]{6,}|b0[0-9a-z]{8}")
"""Numbers; hashes, unlike `facade1`; Amazon's product codes."""
_SYNSETS = {
    "02691156": "airplane", "02747177": "trash bin", "02773838": "bag", "02801938": "basket",
    "02808440": "bathtub", "02818832": "bed", "02828884": "bench", "02843684": "birdhouse",
    "02871439": "bookshelf", "02876657": "bottle", "02880940": "bowl", "02924116": "bus",
    "02933112": "cabinet", "02942699": "camera", "02946921": "can", "02954340": "cap", "02958343": "car",
    "02992529": "cellphone", "03001627": "chair", "03046257": "clock", "03085013": "keyboard",
    "03207941": "dishwasher", "03211117": "display", "03261776": "earphone", "03325088": "faucet",
    "03337140": "file cabinet", "03467517": "guitar", "03513137": "helmet", "03593526": "jar",
    "03624134": "knife", "03636649": "lamp", "03642806": "laptop", "03691459": "loudspeaker",
    "03710193": "mailbox", "03759954": "microphone", "03761084": "microwave", "03790512": "motorbike",
    "03797390": "mug", "03928116": "piano", "03938244": "pillow", "03948459": "pistol",
    "03991062": "flowerpot", "04004475": "printer", "04074963": "remote control", "04090263": "rifle",
    "04099429": "rocket", "04225987": "skateboard", "04256520": "sofa", "04330267": "stove",
    "04379243": "table", "04401088": "telephone", "04460130": "tower", "04468005": "train",
    "04530566": "watercraft", "04554684": "washer",
}  # fmt: skip
"""Categories of ShapeNetCore by their WordNet offsets, which its folders are called."""


@dataclass(frozen=True)
class Names:
    """What a path says."""

    captions: list[str]
    """The name, and the name with the folder's; empty where there is neither."""
    category: str
    """"" for none."""
    group: str


def names_of(path: str) -> Names:
    """What a path says. Names such as `model`, `meshes` or ids aren't told; the next folder's is.

    An id is a group of its own: a hundred chairs of `chair/ID/model.obj` are no variants of one.
    """
    file = PurePosixPath(path)
    folders = [re.sub(r"\.(zip|sh3f)$", "", name, flags=re.IGNORECASE) for name in file.parts[-2::-1]]
    folders = [name for name in folders if len(name) > 1]  # letters and digits of a register
    said = [name for name in (file.stem, *folders) if not _is_generic(name)]
    telling = [name for name in said if name in _SYNSETS or tells(name)]
    # A folder `train` may hold the training half, or trains.
    telling = [n for n in telling if n == file.stem or n.lower() not in _SPLIT_FOLDERS] or telling
    words = [_SYNSETS.get(name) or _words(name) for name in telling]
    captions = [words[0], f"{words[0]}, {words[1]}"] if len(set(words[:2])) > 1 else words[:1]
    first = said[0] if said else file.stem
    if _is_id(first):
        return Names(captions, "".join(words[:1]), first.lower())
    return Names(captions, "".join(words[1:2]), group_of_name(first))


def tells(name: str) -> bool:
    """Whether a name says anything of what it names, unlike `Untitled 3`, `textured_mesh` and ids."""
    return not _is_generic(name) and not _is_id(name)


def _is_generic(name: str) -> bool:
    """Whether a name is made of words such as "textured mesh", and numbers."""
    words = re.findall(r"[^\W\d_]+", spaced(name))
    return bool(words) and all(word in _GENERIC for word in words)


def _is_id(name: str) -> bool:
    """Whether a name is a number, a hash, or several such with generic words between them."""
    words = _parts(name.lower())
    return bool(_ID.fullmatch("".join(words))) or all(_ID.fullmatch(w) or w in _GENERIC for w in words)


def _words(name: str) -> str:
    """Of a name, without the ids and numbers around it: `003_cracker_box`, `Tree_02`, `chair_1a2b3c4d`."""
    parts = _parts(name)
    kept = [n for n, part in enumerate(parts) if not _ID.fullmatch(part.lower())]
    name = "_".join(parts[kept[0] : kept[-1] + 1]) if kept else name
    return spaced(re.sub(r"[\s_\-.()0-9]+$", "", name) or name)


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[\s_\-.()]+", name) if part]
