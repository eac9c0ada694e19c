"""Objaverse 1.0 and XL, through the `objaverse` package and its cache of files.

A cache that is filled already is used as it is, without a network; what is missing is downloaded. Captions
are Cap3D's (a CSV file `uid,caption` without a header) where there are any, else an object's name and tags.
"""

import functools
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.failures import Failure
from data_prep.formats.load import SUFFIXES
from data_prep.sources.find import Source, make_sources
from data_prep.sources.layouts import names_of, tells
from data_prep.sources.listings import Listed, read_cap3d
from data_prep.sources.naming import SplitFractions, group_of_name
from shapeloom.config import Config, UserError
from shapeloom.log import get_logger

_VERSION_FOLDER = "hf-objaverse-v1"
_XL_FOLDER = "xl-files"


class ObjaverseConfig(Config):
    """Which objects of Objaverse to prepare."""

    uids: Path | None = Field(
        default=None, description="file of uids, one a line; for XL of sha256 sums or file identifiers"
    )
    categories: list[str] = Field(default=[], description="LVIS categories such as mug; Objaverse 1.0 alone")
    captions: Path | None = Field(default=None, description="Cap3D's CSV file: uid,caption without a header")
    cache: Path = Field(
        default=Path("~/.objaverse"), description="where the `objaverse` package keeps its files"
    )
    xl: bool = Field(default=False, description="Objaverse-XL instead of 1.0")
    download_processes: int = Field(4, ge=1, description="downloads at the same time")

    @property
    def root(self) -> Path:
        """The folder that the sources' paths are relative to."""
        return self.cache.expanduser() / (_XL_FOLDER if self.xl else _VERSION_FOLDER)


def find_objaverse(config: ObjaverseConfig, fractions: SplitFractions) -> tuple[list[Source], list[Failure]]:
    """The chosen objects' sources and what had to be left out, as `find_sources`; downloads what is missing.

    Raises UserError where nothing is chosen, a file can't be read or a download fails.
    """
    wanted = _read_uids(config.uids)
    if not wanted and not config.categories:
        raise UserError(
            "Name the objects: objaverse.uids=FILE (one uid a line) or objaverse.categories=[mug]."
        )
    if config.xl and config.categories:
        raise UserError(
            "objaverse.categories are of Objaverse 1.0; for XL name the objects by objaverse.uids."
        )
    captions = read_cap3d(config.captions) if config.captions else {}
    try:
        listed, failures = _xl(config, wanted) if config.xl else _version_1(config, wanted)
    except OSError as error:  # urllib's and requests' errors are among them
        raise UserError(
            f"Objaverse could not be downloaded ({error}). Without a network, put its files into "
            f"{config.root} first, laid out as the `objaverse` package does."
        ) from error
    for entry in listed.values():
        own, entry.captions = entry.captions, []
        for text in captions.get(entry.provenance["id"], []):
            entry.add_caption(text)
        entry.captions = entry.captions or own
    return make_sources(config.root, listed, failures, fractions)


def _read_uids(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.split(",")[0].strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"objaverse.uids: {file} can't be read: {error}") from error
    return list(dict.fromkeys(line for line in lines if line))


# ---------------------------------------------------------------- 1.0


def _version_1(config: ObjaverseConfig, wanted: list[str]) -> tuple[dict[str, Listed], list[Failure]]:
    import objaverse

    # The package has no argument for it.
    objaverse.BASE_PATH, objaverse._VERSIONED_PATH = str(config.root.parent), str(config.root)
    category_of: dict[str, str] = {}
    if config.categories:
        lvis = objaverse.load_lvis_annotations()
        if unknown := [name for name in config.categories if name not in lvis]:
            raise UserError(f"objaverse.categories: {', '.join(unknown)} are no LVIS categories.")
        category_of = {uid: name for name in config.categories for uid in lvis[name]}
    known = set(objaverse.load_uids())
    uids = list(dict.fromkeys([*wanted, *sorted(category_of)]))
    failures = [
        Failure(uid, "sources", "missing", "Objaverse has no object of this uid", "")
        for uid in uids
        if uid not in known
    ]
    uids = [uid for uid in uids if uid in known]
    annotations = objaverse.load_annotations(uids) if uids else {}
    paths = objaverse.load_objects(uids, config.download_processes) if uids else {}
    listed = {}
    for uid in uids:
        path = Path(paths[uid]).relative_to(config.root).as_posix()
        listed[path] = _annotated(uid, annotations.get(uid, {}), category_of.get(uid, ""))
    return listed, failures


def _annotated(uid: str, annotation: dict[str, Any], category: str) -> Listed:
    listed = Listed()
    name = str(annotation.get("name") or "")
    if tells(name):
        listed.add_caption(name)
    tags = ", ".join(str(tag.get("name", "")) for tag in annotation.get("tags", [])[:6])
    if tags:
        listed.add_caption(f"{name}, {tags}" if tells(name) else tags)
    own = [str(entry.get("name", "")) for entry in annotation.get("categories", [])]
    listed.columns = {
        "category": category or next(iter(own), ""),
        "licence": str(annotation.get("license") or ""),
        # The file is named by its uid; a hundred things called "Untitled" have nothing in common.
        "group": group_of_name(name) if tells(name) else uid,
    }
    user = annotation.get("user") or {}
    facts = {"creator": user.get("username"), "url": annotation.get("viewerUrl"), "title": name}
    listed.provenance = {"source": "objaverse", "id": uid}
    listed.provenance |= {key: str(value) for key, value in facts.items() if value}
    return listed


# ---------------------------------------------------------------- XL


def _xl(config: ObjaverseConfig, wanted: list[str]) -> tuple[dict[str, Listed], list[Failure]]:
    import objaverse.xl

    cache = str(config.cache.expanduser())
    table = objaverse.xl.get_annotations(download_dir=cache)
    chosen = table[table["sha256"].isin(wanted) | table["fileIdentifier"].isin(wanted)]
    found = set(chosen["sha256"]) | set(chosen["fileIdentifier"])
    failures = [
        Failure(name, "sources", "missing", "Objaverse-XL has no object of this name", "")
        for name in wanted
        if name not in found
    ]
    rows = {row["sha256"]: row for row in chosen.sort_values("fileIdentifier").to_dict("records")}
    files = {sha256: _xl_name(row) for sha256, row in rows.items()}
    lacking = [sha256 for sha256, name in files.items() if not (config.root / name).is_file()]
    lacking = [sha256 for sha256 in lacking if files[sha256].endswith(SUFFIXES)]
    if lacking:
        get_logger("data_prep").info("downloading %d objects of Objaverse-XL", len(lacking))
        config.root.mkdir(parents=True, exist_ok=True)
        objaverse.xl.download_objects(
            chosen[chosen["sha256"].isin(lacking)], cache, config.download_processes,
            handle_found_object=functools.partial(_keep, str(config.root)),
        )  # fmt: skip
    return {files[sha256]: _xl_listed(row) for sha256, row in rows.items()}, failures


def _xl_name(row: dict[str, Any]) -> str:
    suffix = "".join(c for c in str(row["fileType"]).lower() if c.isalnum())
    return f"{row['sha256']}.{suffix}"


def _xl_listed(row: dict[str, Any]) -> Listed:
    identifier = str(row["fileIdentifier"])
    listed = Listed()
    _, in_repository, path = identifier.partition("/blob/")  # and the commit, on GitHub
    names = names_of(path.partition("/")[2] if in_repository else identifier.rpartition("/")[2])
    for caption in names.captions:
        listed.add_caption(caption)
    listed.columns = {"licence": str(row.get("license") or ""), "group": names.group}
    listed.provenance = {
        "source": "objaverse-xl", "id": str(row["sha256"]), "from": str(row["source"]), "url": identifier,
    }  # fmt: skip
    return listed


def _keep(folder: str, local_path: str, file_identifier: str, sha256: str, metadata: dict[str, Any]) -> None:
    """Called by the package for each object, whose file may be gone afterwards."""
    target = Path(folder) / f"{sha256}{Path(local_path).suffix.lower()}"
    partial = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(local_path, partial)
    partial.replace(target)
