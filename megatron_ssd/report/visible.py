"""Text of unknown origin made safe to look at: characters that are not seen, or that move others, get a name.

A program may hold control characters, marks that turn the direction of writing, or half of a surrogate pair, which no
file in UTF-8 can hold. Shown as they are they would hide or reorder what stands beside them.
"""

from __future__ import annotations

import re

# Controls but for tab and line ends; zero-width and bidirectional marks; line and paragraph separators; surrogates;
# noncharacters; tag characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """``text`` with each such character as its code in brackets, for example ``⟨U+202E⟩``; always valid UTF-8."""
    return _UNSEEN.sub(lambda match: f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(match[0]):04X}"
                                     "\N{MATHEMATICAL RIGHT ANGLE BRACKET}", text)  # fmt: skip
