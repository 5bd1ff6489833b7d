"""Which instruction sets the INT8 kernels can use on this machine, and which one they do use.

Every kernel gives the same bits on every instruction set, so the choice is one of speed. The environment variable
``OCTET_ISA`` (``generic``, ``avx2``, ``avx512vnni``, ``neondot``) makes it for a whole process; an instruction set that
the machine lacks is an error that lists the choices.
"""

from contextlib import ExitStack
from typing import NamedTuple

from octet import _C


class Kernel(NamedTuple):
    """One row of the kernel table. ``name`` carries types, family, tile and instruction set: docs/kernel-names.md."""

    name: str
    family: str
    isa: str


def available() -> list[str]:
    """The instruction sets this machine can run, best last; the first is always ``"generic"``.

    >>> available()[0]
    'generic'
    """
    return _C.cpu_available()


def active() -> str:
    """The instruction set that kernels run on: the forced one, else ``OCTET_ISA``, else the best available.

    Raises ValueError, listing the choices, when ``OCTET_ISA`` names one that is not available.
    """
    return _C.cpu_active()


def kernels() -> list[Kernel]:
    """Every kernel this machine can run."""
    return [Kernel(*row) for row in _C.cpu_kernels()]


def force(isa: str) -> ExitStack:
    """Run kernels on ``isa`` from now on, in all threads of the process; as a ``with`` block, until its end.

    Weights packed before keep the instruction set they were packed for. Raises ValueError, listing the choices, when
    the machine lacks ``isa``.

    >>> with force("generic"):
    ...     print(active())
    generic
    """
    before = _C.cpu_forced()
    _C.cpu_force(isa)
    end = ExitStack()
    end.callback(_C.cpu_force, before)
    return end
