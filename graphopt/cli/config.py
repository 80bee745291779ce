"""Options of a command in a file, `--config job.yaml`: names as on the command line, which counts for more.

    model: mypackage.models:make
    target: tvm-cortex-a76
    calibration: photos/
    max-drop: 0.5
    input-shape: ["1,3,224,224"]
    formats:
      head*: float
      conv1: 4
    passes:
      - simplify
      - prune{keep_ratio=0.6}
      - quantize

`--save-config job.yaml` writes what a command was given, from either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import common
from graphopt.cli.reporting import reporting
from graphopt.utils.errors import InputError, alternatives

OWN = ("config", "save_config", *common.NAMES)  # which are about files of options, and about this very call


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in the file the defaults of the command. Runs before any other option is looked at."""
    if path is not None:
        with reporting():
            known = {p.name: p for p in context.command.params if p.name is not None and p.name not in OWN}
            context.default_map = {**(context.default_map or {}), **options(path, known)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        callback=_read,
        is_eager=True,
        help="YAML with any of these options; what the command line gives counts for more.",
    ),
]
SaveConfig = Annotated[Path | None, typer.Option(help="File for the options that were given, for --config.")]


def options(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, by the names of a command's parameters.

    Raises:
        InputError: it cannot be read, is no mapping from options to plain values, or names an option that is not known.
    """
    import yaml  # type: ignore[import-untyped]  # where it is needed: `graphopt --help` answers at once

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if found is None:
        raise InputError(f"{path} is empty; it must hold options by name, such as 'target: arm'")
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{path} must hold options by name, such as 'target: arm', not a {type(found).__name__}")
    named = {_parameter(path, key, known): (key, value) for key, value in found.items()}
    given = {
        name: _plain(path, key, _several(value) if _repeats(known[name]) else value)
        for name, (key, value) in named.items()
    }
    return {name: value if _repeats(known[name]) else _joined(value) for name, value in given.items()}


def _several(value: Any) -> Any:
    """A value for each time that a repeated option is given, in the command line's form.

    Formats by name, `{"head*": float, conv1: 4}`, are ["head*=float", "conv1=4"]; a shape [1, 3, 8, 8] is ["1,3,8,8"], and so is
    each of several, [[1, 3, 8, 8], [1, 4]].
    """
    if isinstance(value, dict):
        plain = not any(isinstance(each, (dict, list)) for each in value.values())
        return [f"{key}={each}" for key, each in value.items()] if plain else value
    if not isinstance(value, list) or (value and all(_is_size(each) for each in value)):
        value = [value]
    return [",".join(map(str, each)) if isinstance(each, list) and all(map(_is_size, each)) else each for each in value]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _repeats(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False))


def _joined(value: Any) -> Any:
    """A list, of an option that is given once: as the command line writes it, `0.5,0.5,0.5`."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _parameter(path: Path, key: str, known: Mapping[str, Any]) -> str:
    name = key.replace("-", "_")
    if name in OWN:
        raise InputError(
            f"{path}: {key!r} is about one call of a command; give it there, as --{name.replace('_', '-')}"
        )
    if name not in known:
        shown = sorted(each.replace("_", "-") for each in known)
        meant = alternatives(name.replace("_", "-"), shown, "options")
        raise InputError(f"{path}: there is no option {key!r}; {meant}")
    return name


def _plain(path: Path, key: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not all(v is None or isinstance(v, (str, int, float, bool)) for v in values):
        raise InputError(f"{path}: {key} must be text, a number, true or false, or a list of them, not {value!r}")
    return value


def save(context: typer.Context, path: Path) -> None:
    """Write the options that a command was given. Raises `InputError` where `path` cannot be written."""
    import yaml

    from graphopt.utils.files import write_atomically

    given = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if (
            name not in OWN
            and value is not None
            and source is not None
            and source.name in ("COMMANDLINE", "DEFAULT_MAP")
        ):
            given[name.replace("_", "-")] = _written(value)
    write_atomically(path, yaml.safe_dump(given, sort_keys=False).encode())


def _written(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_written(each) for each in value] if isinstance(value, (list, tuple)) else value
