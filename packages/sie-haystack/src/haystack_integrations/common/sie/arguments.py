"""Arguments in the forms Haystack has for them, and what they are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from haystack.utils import ComponentDevice, Secret

from sie_core.errors import InvalidRequestError

MODEL_KWARGS = {"dtype": "dtype", "torch_dtype": "dtype", "revision": "revision"}
TOKENIZER_KWARGS = {"model_max_length": "max_length"}
"""Keys of model_kwargs and tokenizer_kwargs that mean something here, and our names for them."""


def without_torch(kwargs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Copy, with a `torch.dtype` replaced by its name, so that the component can be serialised."""
    if kwargs is None:
        return None
    return {key: _dtype_name(value) if "dtype" in key else value for key, value in kwargs.items()}


def _dtype_name(dtype: object) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def translated(
    argument: str, kwargs: dict[str, Any] | None, names: dict[str, str]
) -> dict[str, Any]:
    """Rename the keys of transformers' arguments to ours, and refuse those without a meaning."""
    ours: dict[str, Any] = {}
    for key, value in (kwargs or {}).items():
        if key not in names:
            msg = f"{argument}[{key!r}] is not supported; accepted are: {', '.join(names)}"
            raise InvalidRequestError(msg)
        ours[names[key]] = agreed(key, value, argument, ours.get(names[key]))
    return ours


def agreed(name: str, value: Any, other_name: str, other_value: Any) -> Any:
    """Return the value of a setting that may be given in two places, where they must agree."""
    if value is None or other_value is None:
        return other_value if value is None else value
    if value != other_value:
        msg = (
            f"{name}={value!r} contradicts {other_value!r} from {other_name}: "
            f"they are the same setting, so give {name} only"
        )
        raise InvalidRequestError(msg)
    return value


Device = ComponentDevice | str | list[str] | None


def plain_device(device: ComponentDevice | str | Sequence[str] | None) -> Device:
    """Make a list of several names, so that the component can be serialised."""
    if device is None or isinstance(device, ComponentDevice | str):
        return device
    return list(device)


def device_name(device: Device) -> str | list[str] | None:
    """Name a device as torch does; a `ComponentDevice` can only mean a single one.

    Several in it are parts of one model, which is not what a list of names means: copies of it.
    """
    if not isinstance(device, ComponentDevice):
        return device
    if device.has_multiple_devices:
        msg = (
            f"device must be a single device, but got {device!r}; for a copy of the model on each "
            "of several GPUs give their names in a list"
        )
        raise InvalidRequestError(msg)
    return device.to_torch_str()


def secret_value(name: str, secret: object) -> str | None:
    """Read the secret called `name`. Its value stands in no message."""
    if secret is None:
        return None
    if not isinstance(secret, Secret):
        msg = f"{name} must be a haystack Secret, such as Secret.from_token(…), not {type(secret)}"
        raise InvalidRequestError(msg)
    try:
        value: str | None = secret.resolve_value()
    except ValueError as exc:
        msg = f"the {name} could not be read ({exc}); set the variable, or pass {name}=None"
        raise InvalidRequestError(msg) from exc
    return value


def has_client(fallback: object) -> bool:
    """Tell whether a fallback is more than names and addresses, and so cannot be serialised."""
    if fallback is None or isinstance(fallback, str):
        return False
    return not isinstance(fallback, Sequence) or not all(isinstance(it, str) for it in fallback)
