"""An album's records: one an object, found by its wish."""

from pathlib import Path

from sampling.album import Album, Wish


def fill(album: Album, seeds: range) -> None:
    for seed in seeds:
        name = album.name_for(Wish("a chair", seed, "", "a chair"))
        album.add(
            {"name": name, "prompt": "a chair", "seed": seed, "image": "", "label": "a chair", "files": {}}
        )


def test_records_are_there_again_by_number_and_wish(tmp_path: Path) -> None:
    album = Album(tmp_path)
    fill(album, range(57))
    album.save()
    back = Album(tmp_path)
    assert [record["seed"] for record in back.records] == list(range(57))
    assert back.name_for(Wish("a table", 0, "", "a table")) == "057_a-table_seed0"
    assert back.find(Wish("a chair", 56, "", "")) is not None
    assert back.find(Wish("a chair", 57, "", "")) is None


def test_an_object_made_again_takes_its_records_place(tmp_path: Path) -> None:
    album = Album(tmp_path)
    fill(album, range(3))
    again = {**album.records[1], "label": "a better chair"}
    album.add(again)
    assert len(album.records) == 3 and album.records[1]["label"] == "a better chair"
    assert album.find(Wish("a chair", 1, "", "a chair")) == again
