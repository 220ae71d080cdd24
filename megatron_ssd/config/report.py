"""What the report may take."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """``page_mib`` bounds ``report/problems.html``, which keeps as much of each response as fits."""

    page_mib: float = 8.0

    def __post_init__(self) -> None:
        require(
            self.page_mib > 0, f"report.page_mib = {self.page_mib}", rule="must be positive", fix="8 is the default"
        )
