"""Derive vCPU and memory of an instance class from its name, by the rules of EC2 type names.

The size determines the number of vCPU, the family the memory for each vCPU. The exceptions are listed below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

_GIB: Final = 1 << 30
_CLASS: Final = re.compile(r"db\.(([a-z])\d+[a-z]*)\.([a-z0-9]+)\Z")

_VCPU: Final = {"medium": 1, "large": 2, "xlarge": 4} | {
    f"{n}xlarge": 4 * n for n in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
}

# GiB for each vCPU: by the first letter of the family, or by the family where the families of a letter differ.
_GIB_PER_VCPU: Final = {"c": 2, "m": 4, "r": 8, "t": 4, "z": 8}
_GIB_PER_VCPU_OF_FAMILY: Final = {"x2g": 16, "x2gd": 16, "x2idn": 16, "x2iedn": 32, "x8g": 16}
# The first generation of each letter that follows the rules; older ones do not run PostgreSQL 13 and later.
_FIRST_GENERATION: Final = {"c": 5, "m": 5, "r": 5, "t": 3, "z": 1}
# The small burstable sizes are exceptions: two vCPU, and this many GiB.
_BURSTABLE_GIB: Final = {"micro": 1, "small": 2, "medium": 4}
_BURSTABLE_VCPU: Final = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """The values of the variables in a parameter's formula.

    Attributes:
        vcpu: ``DBInstanceVCPU``.
        memory_bytes: the whole memory of the class. ``DBInstanceClassMemory`` is less: RDS subtracts the memory of its
            own processes, and does not publish how much. A formula evaluated here is therefore an upper estimate.
    """

    vcpu: int
    memory_bytes: int


def hardware(instance_class: str) -> Hardware | None:
    """Return vCPU and memory of a class such as ``db.r6g.2xlarge``; None if unknown, as for ``db.serverless``."""
    match = _CLASS.match(instance_class.lower())
    if match is None:
        return None
    family, letter, size = match.groups()
    generation = int("".join(filter(str.isdigit, family)))
    by_letter = _GIB_PER_VCPU.get(letter) if generation >= _FIRST_GENERATION.get(letter, 1) else None
    gib, vcpu = _GIB_PER_VCPU_OF_FAMILY.get(family, by_letter), _VCPU.get(size)
    if gib is None:
        return None
    if letter == "t" and size in _BURSTABLE_GIB:
        return Hardware(_BURSTABLE_VCPU, _BURSTABLE_GIB[size] * _GIB)
    if vcpu is None or (size == "medium" and not _has_medium(family)):
        return None
    return Hardware(vcpu, vcpu * gib * _GIB)


@cache
def all_hardware() -> tuple[Hardware, ...]:
    """Return each combination of vCPU and memory of a class, the smallest first.

    A value that is sufficient for each of them is sufficient for an unknown class.
    """
    ratios = {*_GIB_PER_VCPU.values(), *_GIB_PER_VCPU_OF_FAMILY.values()}
    sizes = {(vcpu, vcpu * gib) for vcpu in _VCPU.values() for gib in ratios}
    sizes |= {(_BURSTABLE_VCPU, gib) for gib in _BURSTABLE_GIB.values()}
    return tuple(Hardware(vcpu, gib * _GIB) for vcpu, gib in sorted(sizes))


def _has_medium(family: str) -> bool:
    # Only Graviton families (a g after the generation) have a medium size, of one vCPU.
    return "g" in family[1:]
