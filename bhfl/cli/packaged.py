"""The configurations that come with bhfl, which are found by their names.

This module needs the standard library alone: a misspelt name is answered before torch is loaded.
"""

from pathlib import Path

import bhfl
from bhfl.checks import suggestion
from bhfl.files import user_path

_SUFFIX = ".yaml"


def packaged_folder() -> Path:
    """The folder of the configurations that come with bhfl: in the package where it is installed,
    and beside it in a checkout, from where they are packed.
    """
    package = Path(bhfl.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def packaged_names() -> list[str]:
    """The names of all configurations and matrices that come with bhfl, such as
    ``digits/fedavg``.
    """
    folder = packaged_folder()
    files = folder.rglob(f"*{_SUFFIX}")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def find_config(given: str, folder: Path) -> Path:
    """The YAML file that a user means.

    Args:
        given: A path, or the name of a configuration that comes with bhfl; ``.yaml`` may be left
            out. A file of the user's own comes before a packaged one.
        folder: Where a relative path begins.

    Raises:
        ValueError: There is no such file; the message says from "must" on where it was looked for.
    """
    try:
        wanted = user_path(given)
    except ValueError as error:
        raise ValueError(f"must be a YAML file, and there is no file {given!r}: {error}") from error
    # what climbs or begins somewhere names a place, and no configuration of ours
    named = not wanted.is_absolute() and ".." not in wanted.parts
    places = [folder, packaged_folder()] if named else [folder]
    for place in places:
        for file in (place / wanted, Path(f"{place / wanted}{_SUFFIX}")):
            # neither a pipe nor a device, whose end may never come
            if file.is_file():
                return file
    is_run = (folder / wanted / "config.yaml").is_file()
    near = "; give its config.yaml" if is_run else ""
    if not named:
        raise ValueError(
            f"must be a YAML file, and there is no file {str(folder / wanted)!r}{near}"
        )
    name = wanted.as_posix().removesuffix(_SUFFIX)
    near = near or suggestion(name, packaged_names(), others=False, most=3)
    raise ValueError(
        "must be a YAML file or the name of one that comes with bhfl, and there is no file "
        f"{given!r} in {folder.absolute()} or {packaged_folder()}"
        f"{near or '; bhfl init --list lists them'}"
    )
