"""What an instance class brings: vCPU and memory, by the rules of EC2's type names.

The size says how many vCPU, the family how much memory each of them has. What breaks these rules is named below.
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

# GiB for each vCPU: by the letter that a family begins with, or by the family where its letter stands for several.
_GIB_PER_VCPU: Final = {"c": 2, "m": 4, "r": 8, "t": 4, "z": 8}
_GIB_PER_VCPU_OF_FAMILY: Final = {"x2g": 16, "x2gd": 16, "x2idn": 16, "x2iedn": 32, "x8g": 16}
# The generations that PostgreSQL 13 and later runs on; the older ones had rules of their own.
_FIRST_GENERATION: Final = {"c": 5, "m": 5, "r": 5, "t": 3, "z": 1}
# The small burstable sizes follow no rule: two vCPU, and so many GiB.
_BURSTABLE_GIB: Final = {"micro": 1, "small": 2, "medium": 4}
_BURSTABLE_VCPU: Final = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the variables of a parameter's formula stand for.

    Attributes:
        vcpu: ``DBInstanceVCPU``.
        memory_bytes: the class's whole memory. ``DBInstanceClassMemory`` is somewhat less: RDS takes off what its own
            processes use, and publishes no figure for it. A formula evaluated here is thus an upper estimate.
    """

    vcpu: int
    memory_bytes: int


def hardware(instance_class: str) -> Hardware | None:
    """Return what a class such as ``db.r6g.2xlarge`` brings; None where that is not known, as for ``db.serverless``."""
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
    """Return each pair of vCPU and memory that a class may have, the smallest first.

    What holds for all of them holds for a class that is not known.
    """
    ratios = {*_GIB_PER_VCPU.values(), *_GIB_PER_VCPU_OF_FAMILY.values()}
    found = {(vcpu, vcpu * gib) for vcpu in _VCPU.values() for gib in ratios}
    found |= {(_BURSTABLE_VCPU, gib) for gib in _BURSTABLE_GIB.values()}
    return tuple(Hardware(vcpu, gib * _GIB) for vcpu, gib in sorted(found))


def _has_medium(family: str) -> bool:
    # Only Graviton families (a g after the generation) have a medium size, of one vCPU.
    return "g" in family[1:]
