"""Every exception this project raises, in one tree.

    SIEError
    ├── InvalidRequestError (ValueError)      an argument is wrong; nothing was computed
    │   └── InputTooLongError                 one item is over a limit that cannot be split away
    ├── MissingDependencyError (ImportError)  an optional extra is not installed
    ├── ModelError
    │   ├── ModelNotFoundError                no source has the model
    │   ├── UnsupportedModelError             found, but not a model that this engine can score with
    │   └── ModelLoadError                    found and supported, but its files could not be loaded
    ├── InvalidResponseError                  scores missing, doubled, unknown or not finite
    ├── DeadlineExceededError (TimeoutError)  the whole-call deadline passed
    ├── QueueFullError                        too much work is waiting; try again later
    ├── ResourceExhaustedError                out of memory on the device
    ├── InferenceError                        the forward pass failed
    ├── ClientClosedError (RuntimeError)      used after close()
    ├── DownloadError                         a file could not be fetched or is the wrong one
    └── DatasetError                          a data set could not be fetched or read

A message says what was wrong, the value received and what to do about it. Foreign exceptions
are translated where they enter (`raise … from exc`), so callers need to catch `SIEError` only.
"""

from __future__ import annotations


class SIEError(Exception):
    """Base of every exception raised by sie."""


class InvalidRequestError(SIEError, ValueError):
    """An argument is wrong. Nothing was computed or sent."""


class InputTooLongError(InvalidRequestError):
    """One item is over a limit and cannot be split."""


class MissingDependencyError(SIEError, ImportError):
    """An optional dependency is not installed; the message holds the `pip install` line."""


class ModelError(SIEError):
    """A model could not be made ready."""


class ModelNotFoundError(ModelError):
    """No source has the model; the message lists the places tried and what to do."""


class UnsupportedModelError(ModelError):
    """The model exists, but this engine cannot score with it."""


class ModelLoadError(ModelError):
    """The model's files are there, but could not be loaded."""


class InvalidResponseError(SIEError):
    """A backend's scores cannot be trusted: missing, doubled, unknown or not finite."""


class DeadlineExceededError(SIEError, TimeoutError):
    """The deadline of the whole call passed before the answer was there."""


class QueueFullError(SIEError):
    """Too much work is waiting for this model. Try again later, or lower the load."""


class ResourceExhaustedError(SIEError):
    """The device has too little free memory for the call."""


class InferenceError(SIEError):
    """The model's forward pass failed."""


class ClientClosedError(SIEError, RuntimeError):
    """The client was used after `close()`."""


class DownloadError(SIEError):
    """A file could not be fetched, or what arrived is not what was expected."""


class DatasetError(SIEError):
    """A data set could not be fetched or read."""
