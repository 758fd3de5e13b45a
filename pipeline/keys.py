"""The keys of the configuration as a person may write them: what completes one, and what was meant by a wrong one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Models = tuple[type[BaseModel], ...]
"""What may stand in one place; several where a word such as `encoding` decides."""


def at(root: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that there are below a path.

    Args:
        root: The whole configuration.
        path: As pydantic names a place: keys, positions in lists, and the word that decided between several models.
    """
    models: Models = (root,)
    for part in path:
        narrowed = tuple(model for model in models if part in _words(model))
        if narrowed:
            models = narrowed
        elif isinstance(part, str):
            models = tuple(inner for model in models for inner in _below(model, part))
    return sorted({name for model in models for name in _fields(model)})


def written(root: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every key that `--set` takes, with the words that it can be where it can be nothing else.

    Args:
        root: The whole configuration.
        tree: A configuration as its file has it: the elements of its lists go by their column.
    """
    return dict(_written((root,), tree, ""))


def _written(models: Models, tree: Any, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    given = tree if isinstance(tree, Mapping) else {}
    chosen = tuple(model for model in models if _words(model) & {str(value) for value in given.values()}) or models
    for model in chosen:
        for name, field in _fields(model).items():
            values = tuple(sorted({word for each in models for word in _literals(_fields(each).get(name))}))
            inner = _models(field.annotation)
            if not inner or _is_list(field.annotation):
                yield f"{prefix}{name}", values
            else:
                yield from _written(inner, given.get(name), f"{prefix}{name}.")
            for element in given[name] if inner and isinstance(given.get(name), list) else ():
                if isinstance(element, Mapping) and element.get("column"):
                    yield from _written(inner, element, f"{prefix}{name}.{element['column']}.")


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _below(model: type[BaseModel], name: str) -> Models:
    field = _fields(model).get(name)
    return _models(field.annotation) if field else ()


def _models(annotation: Any) -> Models:
    """The models that an annotation is made of: itself, what a list holds, what a union may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) is dict:
        return ()
    return tuple(model for inner in get_args(annotation) for model in _models(inner))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list) or any(
        get_origin(each) in (tuple, list) for each in get_args(annotation)
    )


def _words(model: type[BaseModel]) -> set[str]:
    """The words by which a model is known from its siblings."""
    found = (_literals(field) for field in _fields(model).values() if get_origin(field.annotation) is Literal)
    return {words[0] for words in found if len(words) == 1}


def _literals(field: FieldInfo | None) -> tuple[str, ...]:
    annotation = field.annotation if field else None
    if annotation is bool:
        return ("false", "true")
    words = (annotation, *get_args(annotation))
    return tuple(str(word) for each in words if get_origin(each) is Literal for word in get_args(each))
