"""The classes of images in files: by EDM's dataset.json, or by the folders that they lie in."""

import json
from pathlib import Path

from lightning_cfg.errors import UserError


def tidy(name: str) -> str:
    """A file's name without what changes nothing: ./a/1.png, a//1.png and a\\1.png are a/1.png."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def by_folder(path: Path, names: list[str]) -> tuple[list[int] | None, list[str] | None]:
    """A class for each image of these names, the folder at the top, and the folders' names.

    A folder that holds all images, and further folders with them, is no class but their common
    place: of mydata/cat/1.png and mydata/dog/2.png the classes are cat and dog. None where no image
    lies in a folder; UserError where only some do.
    """
    folders, place = [name.split("/")[:-1] for name in names], ""
    while all(folders) and len({f[0] for f in folders}) == 1 and max(map(len, folders)) > 1:
        place += f" of {folders[0][0]}" if not place else f"/{folders[0][0]}"
        folders = [folder[1:] for folder in folders]
    tops = [folder[0] if folder else "" for folder in folders]
    if set(tops) == {""}:
        return None, None
    if "" in tops:
        raise UserError(
            f"{path}: {names[tops.index('')]} has no class: there is no dataset.json, and it lies "
            f"in none of the folders{place}"
        )
    number = {folder: k for k, folder in enumerate(sorted(set(tops)))}
    return [number[top] for top in tops], list(number)


SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}


def refuse_splits(path: Path, names: list[str], class_names: list[str]) -> None:
    """UserError where the folders that would be classes are called like splits, all of them."""
    if len(class_names) > 1 and {name.lower() for name in class_names} <= SPLITS:
        first, other = sorted(class_names, key=lambda name: not name.lower().startswith("train"))[
            :2
        ]
        place = Path(path, *_place(names, class_names))
        raise UserError(
            f"{path}: its folders {', '.join(class_names)} are splits and no classes: give "
            f"data.path={place / first} and data.held_out={place / other}"
        )


def _place(names: list[str], class_names: list[str]) -> list[str]:
    """The folders that the classes lie in."""
    first = names[0].split("/")
    return first[: next((i for i, part in enumerate(first) if part in class_names), 0)]


def doubts_about(path: Path, names: list[str], class_names: list[str]) -> tuple[str, ...]:
    """What is odd about folders that are classes: one without an image, or further ones inside.

    names  of the images
    """
    place = _place(names, class_names)
    inside = {tuple(name.split("/")[len(place) : -1]) for name in names}
    told = []
    deep = sorted("/".join(folder) for folder in inside if len(folder) > 1)
    if len(deep) > len(class_names):
        told.append(
            f"{path}: the classes are its {len(class_names)} outermost folders; the {len(deep)} "
            f"folders inside of them, such as {deep[0]}, are not told apart"
        )
    there = Path(path, *place)
    folders = [one.name for one in there.iterdir() if one.is_dir()] if there.is_dir() else []
    known = {*class_names, *place}
    if empty := sorted(name for name in folders if name not in known and name[0] != "."):
        told.append(f"{path}: {', '.join(empty)} holds no image, and is no class")
    return tuple(told)


def by_dataset_json(path: Path, names: list[str], content: bytes) -> list[int] | None:
    """A class for each image of these names, as the content of a dataset.json has them.

    None where it says that there are none; UserError where it is anything else than described in
    `image_files`, or not of just these images.
    """
    where = f"{path}: dataset.json"
    try:
        entries = json.loads(content)["labels"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{where} is not {{"labels": [[file, class], ...]}} or {{"labels": null}}'
        ) from error
    except ValueError as error:
        raise UserError(f"{where} is damaged or not json: {error}") from error
    if entries is None:
        return None
    classes: dict[str, int] = {}
    try:
        for name, k in ((tidy(name), k) for name, k in entries):
            if type(k) is not int or k < 0:
                raise UserError(f"{where}: {name} has class {k!r}, not an integer of 0 or more")
            if classes.setdefault(name, k) != k:
                raise UserError(f"{where}: {name} has the classes {classes[name]} and {k}")
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: labels is not a list of [file, class]") from error
    known = set(names)
    gone = next((name for name in classes if name not in known), None)
    if gone is not None:
        raise UserError(f"{where} has a class for {gone}, which is not among the images")
    bare = next((name for name in names if name not in classes), None)
    if bare is not None:
        raise UserError(f"{where} has no class for {bare}")
    return [classes[name] for name in names]


def class_names_in(path: Path, content: bytes) -> list[str] | None:
    """The names of the classes, which a dataset.json of `encode` has beside the labels."""
    names = json.loads(content).get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: dataset.json: class_names is not a list of names")
    return names
