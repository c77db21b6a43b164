"""Azure's models: versions, retirement dates, regions and SKUs, as Microsoft's pages had them on one day.

`models.json` beside this module is the only table. Bicep loads it, the doctor checks against it, docs/azure.md §7 shows
it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

__all__ = ["Model", "ModelTable", "is_classic_whisper", "model_table"]

_CLASSIC_WHISPER = re.compile(r"whisper(-\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model. `retires` has every date of the schedule, the earliest first; it may be empty."""

    name: str
    version: str
    kind: str  # realtime, transcription or translation
    state: str  # GA, preview or unknown
    retires: tuple[date, ...]
    regions: tuple[str, ...]  # Azure's short names; empty where Microsoft's table does not list the model
    skus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelTable:
    """Every known model, and the versions that `infra/main.bicep` deploys."""

    read_on: date
    deployed: Mapping[str, str]  # a model's name to its version
    regions: Mapping[str, str]  # Azure's short names to readable ones
    models: tuple[Model, ...]

    def find(self, name: str) -> Model | None:
        """The version that is deployed by default, else the one that retires last; None for an unknown model."""
        versions = [model for model in self.models if model.name == name]
        if not versions:
            return None
        wanted = self.deployed.get(name)
        return next(
            (model for model in versions if model.version == wanted),
            max(versions, key=lambda model: model.retires[:1] or (date.max,)),
        )

    def region_names(self, name: str) -> tuple[str, ...]:
        """Readable names of the regions that have the model; for an unknown model, those of the default one."""
        model = self.find(name)
        regions = model.regions if model and model.regions else self.default("realtime").regions
        return tuple(self.regions[region] for region in regions)

    def default(self, kind: str) -> Model:
        """The version that `infra/main.bicep` deploys of that kind, `realtime` or `transcription`."""
        return next(
            model for model in self.models if model.kind == kind and self.deployed.get(model.name) == model.version
        )


def is_classic_whisper(deployment: str) -> bool:
    """Whether the deployment's name is a classic `whisper`, which no GA session accepts."""
    return _CLASSIC_WHISPER.fullmatch(deployment) is not None


@cache
def model_table() -> ModelTable:
    """The table, read once."""
    data = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    return ModelTable(
        read_on=date.fromisoformat(data["read_on"]),
        deployed=data["deployed"],
        regions=data["regions"],
        models=tuple(
            Model(
                name=row["name"],
                version=row["version"],
                kind=row["kind"],
                state=row["state"],
                retires=tuple(date.fromisoformat(day) for day in row["retires"]),
                regions=tuple(row["regions"]),
                skus=tuple(row["skus"]),
            )
            for row in data["models"]
        ),
    )
