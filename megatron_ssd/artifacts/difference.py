"""In what two identities of a stage differ, in words."""

from __future__ import annotations

from typing import Any

from megatron_ssd.errors import shown


def difference(old: dict[str, Any], new: dict[str, Any], old_inputs: dict[str, str], new_inputs: dict[str, str]) -> str:
    """The first thing in which two identities differ, in words."""
    before, after = _flat(old), _flat(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            return f"configuration ({key}: {shown(before.get(key))} then, {shown(after.get(key))} now)"
    changed = sorted(
        role for role in old_inputs.keys() | new_inputs.keys() if old_inputs.get(role) != new_inputs.get(role)
    )
    return f"input ({', '.join(changed)} changed since)"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return result
