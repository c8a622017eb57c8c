"""Converts parameter trees to dictionaries of named leaves, and these and vectors back to trees."""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named(tree: Any) -> dict[str, Any]:
    """The leaves by their dotted paths, such as `flows.3.wn.in_layer_2.v`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def nested(leaves: Mapping[str, Any]) -> Any:
    """The tree of `named`'s leaves: keys that are all numbers give a list, others a dictionary."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return _with_lists(tree)


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {key: _with_lists(child) for key, child in node.items()}
    if all(key.isdecimal() for key in children):
        return [children[str(i)] for i in range(len(children))]
    return children


def _reshaped(part: Any, leaf: Any) -> Any:
    return part.reshape(leaf.shape)


def unravelled(vector: Any, like: Any, shaped: Callable[[Any, Any], Any] = _reshaped) -> Any:
    """A tree shaped as `like` from the vector that `jax.flatten_util.ravel_pytree` makes of one.

    `shaped` maps a part of the vector and a leaf of `like` to the new leaf.
    """
    leaves, structure = jax.tree.flatten(like)
    ends = list(accumulate(leaf.size for leaf in leaves))
    split = np.split if isinstance(vector, np.ndarray) else jnp.split
    return jax.tree.unflatten(structure, map(shaped, split(vector, ends[:-1]), leaves))
