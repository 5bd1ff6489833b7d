"""Errors that octet raises. Each message names the op or layer, what must hold, and what came."""


class OctetError(RuntimeError):
    """Base of every error octet raises on purpose."""


class CaptureError(OctetError):
    """The model cannot be turned into a module graph; the message gives the reason and, if known, the user's line."""
