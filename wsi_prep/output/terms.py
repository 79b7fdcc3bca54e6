"""What an output was made with, and what a later call must ask for again; a call that does not is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsi_prep.errors import OtherConfiguration

PATIENT_KEY = "patient_key"
"""Field of run.json: the mark of the secret that patients are keyed with, where any is."""

_SHOWN = 60
_NAMED_AS = {"manifest": "a manifest", "masks": "masks", "institution_pattern": "an institution pattern"}


@dataclass(frozen=True)
class Terms:
    """What one call makes slides with.

    `settings` are those that run.json keeps, in private output with `private`, the mark of its key. `named`: whether a
    manifest, masks and an institution pattern are given. With `redo` slides may be done again. `passing` is what passes
    the filters, in SQL. `patient_key` is the mark of the secret for patients, None without one.
    """

    settings: Mapping[str, object]
    named: Mapping[str, bool]
    redo: bool
    passing: str = ""
    patient_key: str | None = None

    def require_kept(self, where: str, before: Mapping[str, Any]) -> None:
        """Raise OtherConfiguration where the output `where`, of which run.json says `before`, was made otherwise.

        Names and keyed ids never share a folder, nor do ids or patients of two keys, whatever else may be done again. A
        manifest or pattern that was given once and is forgotten now would undo what it said of every slide.
        """
        self._require_named_again(where, before)
        if before:
            self._require_same_key(where, before.get("settings", {}))
        self.require_patient_key(where, before.get(PATIENT_KEY))
        if before and not self.redo:
            self._require_same(where, before.get("settings", {}))

    def _require_named_again(self, where: str, before: Mapping[str, object]) -> None:
        for name, given in self.named.items():
            if before.get(name) and not given and not self.redo:
                raise OtherConfiguration(
                    f"OUT {where} was made with {_NAMED_AS[name]}; name it again with {name.upper()}=, "
                    "or add REDO=1 to go by the files alone"
                )

    def require_patient_key(self, where: str, was: object) -> None:
        """Raise OtherConfiguration unless patients are keyed now with the secret whose mark `was` is, if any is.

        A patient with two keys, or with one and none, could be in training and held out.
        """
        if not was or was == self.patient_key:
            return
        if self.patient_key is None:
            raise OtherConfiguration(f"OUT {where} was made with PATIENT_KEY; give it again, with the same secret")
        raise OtherConfiguration(f"OUT {where} was made with another PATIENT_KEY; name that one, or another OUT")

    def _require_same_key(self, where: str, before: Mapping[str, object]) -> None:
        was, now = before.get("private"), self.settings.get("private")
        if was == now:
            return
        if was is None:
            raise OtherConfiguration(f"OUT {where} was made without PRIVATE=1 and holds names; name another OUT")
        if now is None:
            raise OtherConfiguration(f"OUT {where} was made with PRIVATE=1; give it again, with the same ID_KEY")
        raise OtherConfiguration(f"OUT {where} was made with another ID_KEY; name that one, or another OUT")

    def _require_same(self, where: str, before: Mapping[str, object]) -> None:
        old, new = _flat(before), _flat(self.settings)
        changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if changed:
            shown = "; ".join(
                f"{name[:_SHOWN]} was {str(old.get(name))[:_SHOWN]}, now {new.get(name)}" for name in changed[:3]
            )
            later = (
                "; its tiles are there with their measures, so you can call without FILTER, and leave the same tiles "
                f'out where they are used (pretrain, embed, peek, interchange) by WHERE="{self.passing}"'
            )
            by_row = (
                "; or leave ASSUME_MPP out, and give the mpp of the slides that have none in the manifest: "
                "those alone are made then"
            )
            only_assumed = changed == ["assume_mpp"] and old.get("assume_mpp") is None
            only_filtered = changed == ["filters"] and not old.get("filters")
            raise OtherConfiguration(
                f"OUT {where} was made with other settings ({shown}); name another OUT, "
                f"or add REDO=1 to do its slides again with the new ones{later if only_filtered else ''}"
                f"{by_row if only_assumed else ''}"
            )


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
