"""Errors that octet raises. Each message names the op or layer, what must hold, and what came."""


class OctetError(RuntimeError):
    """Base of every error octet raises on purpose."""


class CaptureError(OctetError):
    """The model cannot be turned into a module graph; the message gives the reason and, if known, the user's line."""


class PrepareError(OctetError):
    """The model cannot be quantized as asked; the message names the layer."""


class ConvertError(OctetError):
    """The QAT model is not ready to be converted; the message names the grid or layer."""


class RangeError(OctetError):
    """A grid saw values no range can be made of; the message names it."""


class StateDictError(OctetError):
    """A state_dict does not belong to this model; nothing was loaded."""


class FileError(OctetError):
    """A file is not one of ours, or not a whole one; nothing was loaded."""
