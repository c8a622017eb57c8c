"""Renames the fields of the original's and of older configs to today's names."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from waveglow_jax.config_fields import typed, unknown_field
from waveglow_jax.errors import UserError


def in_our_names(raw: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a config under today's names; `raw` is changed in place.

    It must run before overrides are applied, which take precedence over the file's value under
    either name. Raises UserError for a field that has no counterpart, or that the file holds under
    both names with two values.
    """
    return _with_sigma_moved(_from_the_original(raw))


def _from_the_original(raw: dict[str, Any]) -> dict[str, Any]:
    """The original's config in our names, without fields that are set elsewhere here (--output,
    pmap)."""
    train = raw.get("train_config")
    raw.pop("dist_config", None)
    if not isinstance(train, dict):
        return raw
    if train.pop("checkpoint_path", ""):
        raise UserError(
            "train_config.checkpoint_path is not read: a run resumes from its own --output folder; "
            "take the field out"
        )
    train.pop("output_directory", None)
    train.pop("with_tensorboard", None)
    if "fp16_run" in train:
        train["wn_dtype"] = "bfloat16" if train.pop("fp16_run") else "float32"
    return raw


def _with_sigma_moved(raw: dict[str, Any]) -> dict[str, Any]:
    """Renames train_config.synthesis_sigma to its name of today, synthesis_config.sigma."""
    train = raw.get("train_config")
    if not isinstance(train, dict) or "synthesis_sigma" not in train:
        return raw
    synthesis = raw.setdefault("synthesis_config", {})
    if not isinstance(synthesis, dict):
        raise UserError("synthesis_config must be a JSON object")
    sigma = typed(float, train.pop("synthesis_sigma"), "train_config.synthesis_sigma")
    if synthesis.setdefault("sigma", sigma) != sigma:
        raise UserError(
            f"train_config.synthesis_sigma {sigma} and synthesis_config.sigma "
            f"{json.dumps(synthesis['sigma'])} are the same setting and differ: take "
            "train_config.synthesis_sigma out"
        )
    return raw


def override(raw: dict[str, Any], name: str, value: Any, sections: Mapping[str, Any]) -> None:
    """Sets one field of a config's JSON in place; `name` is its name on the command line.

    `sections` maps the names of the file's sections to their types.
    """
    section, *rest = name.split(".")
    section = section if section.endswith("_config") else f"{section}_config"
    if not rest:
        raise UserError(f"--{name}: name the section too, such as --train.{name}")
    if section not in sections:
        raise UserError(unknown_field(".".join([section, *rest]), [], sections))
    if (section, rest) == ("train_config", ["synthesis_sigma"]):
        section, rest = "synthesis_config", ["sigma"]  # its name in older commands
    node = raw
    for key in (section, *rest[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"--{name}: {key} has no fields")
    node[rest[-1]] = value


def as_typed(message: str, overrides: Iterable[str], path: str) -> str:
    """An error's message with the fields' names of the command line, such as --train.steps.

    overrides: their names as they were typed. path: the config file, which the message names too
    if it names none of the overrides.
    """
    shown = message
    for name in overrides:
        section, _, field = name.partition(".")
        in_file = f"{section.removesuffix('_config')}_config.{field}"
        option = f"--{name}".replace("\\", r"\\")
        shown = re.sub(rf"(?<![-\w.]){re.escape(in_file)}(?!\w)", option, shown)
    if shown == message and not message.startswith("--"):
        return f"{path} with {', '.join(f'--{name}' for name in overrides)}: {message}"
    return re.sub(r"(?<![-\w.])(waveglow|data|train|synthesis)_config\.", r"--\1.", shown)
