"""Dyes by the colour of light that they take away, and the stains that laboratories make of them.

A recipe says which dye goes to which structure, how strongly, and how much of the tissue has that structure. It is not
how a stain is made but how it looks, with the spread between laboratories.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from skimage import color

Range = tuple[float, float]
Vector = tuple[float, float, float]


def _published(matrix: object, row: int) -> Vector:
    red, green, blue = np.asarray(matrix, np.float64)[row]
    return float(red), float(green), float(blue)


# optical densities of red, green and blue; direction only. Where scikit-image has them they are those of Ruifrok and
# Johnston and of Landini's collection; the others follow from the dye's absorption peak
DYES: dict[str, tuple[Vector, ...]] = {
    "haematoxylin": (_published(color.rgb_from_hed, 0), (0.49, 0.77, 0.41), (0.55, 0.75, 0.35), (0.75, 0.62, 0.22)),
    "counterstain": (_published(color.rgb_from_hed, 0), (0.75, 0.62, 0.22), (0.62, 0.64, 0.45), (0.66, 0.58, 0.48)),
    "eosin": (_published(color.rgb_from_hed, 1), (0.09, 0.95, 0.28), (0.05, 0.84, 0.54), (0.22, 0.95, 0.25)),
    "dab": (_published(color.rgb_from_hed, 2), (0.35, 0.58, 0.73)),
    "aec": (_published(color.rgb_from_hax, 1),),
    "fast red": (_published(color.rgb_from_rbd, 0), (0.15, 0.90, 0.30)),
    "schiff": (_published(color.rgb_from_hpx, 1), (0.35, 0.90, 0.28), (0.50, 0.82, 0.28), (0.48, 0.80, 0.36)),
    "alcian blue": (_published(color.rgb_from_ahx, 0), (0.92, 0.36, 0.17)),
    "methyl green": (_published(color.rgb_from_gdx, 0), (0.85, 0.30, 0.40)),
    "methyl blue": (_published(color.rgb_from_bpx, 0), (0.85, 0.51, 0.11)),
    "ponceau": (_published(color.rgb_from_bpx, 1), (0.13, 0.83, 0.54)),
    "methylene blue": (_published(color.rgb_from_bex, 0), (0.80, 0.58, 0.15)),
    "azocarmine": (_published(color.rgb_from_bro, 1),),
    "orange g": (_published(color.rgb_from_bro, 2), (0.05, 0.25, 0.97)),
    "light green": (_published(color.rgb_from_fgx, 1), (0.80, 0.25, 0.50), (0.78, 0.48, 0.40)),
    "azure": ((0.75, 0.62, 0.20), (0.65, 0.74, 0.18)),
    "congo red": ((0.08, 0.70, 0.70), (0.06, 0.82, 0.55)),
    "nuclear fast red": ((0.20, 0.90, 0.38), (0.25, 0.85, 0.46)),
    "fuchsin": ((0.12, 0.92, 0.35), (0.25, 0.94, 0.25)),
    "sirius red": ((0.12, 0.80, 0.58), (0.10, 0.88, 0.46)),
    "picric acid": ((0.03, 0.14, 0.99), (0.06, 0.30, 0.95)),
    "prussian blue": ((0.86, 0.47, 0.18), (0.80, 0.55, 0.25)),
    "luxol blue": ((0.90, 0.40, 0.15),),
    "cresyl violet": ((0.60, 0.78, 0.15), (0.50, 0.84, 0.20)),
    "silver": ((0.57, 0.58, 0.59), (0.50, 0.58, 0.65), (0.60, 0.58, 0.55)),
    "silver ground": ((0.35, 0.52, 0.78), (0.20, 0.45, 0.87), (0.12, 0.42, 0.90), (0.45, 0.58, 0.68)),
    "green chromogen": ((0.85, 0.35, 0.40), (0.75, 0.30, 0.60)),
    "teal chromogen": ((0.92, 0.35, 0.16),),
    "purple chromogen": ((0.45, 0.87, 0.20), (0.35, 0.92, 0.20)),
    "indigo chromogen": ((0.72, 0.62, 0.30), (0.62, 0.66, 0.42)),
    "yellow chromogen": ((0.03, 0.16, 0.98),),
    "pigment": ((0.35, 0.55, 0.76), (0.50, 0.58, 0.64), (0.25, 0.48, 0.84)),
    "blood": ((0.12, 0.82, 0.56), (0.20, 0.72, 0.66)),
}


@dataclass(frozen=True)
class Layer:
    """One dye on one structure; see `recolour.Structures` for what `where` may be.

    `amount`: length of the optical density where the structure is fullest. `share` of the tissue for structures that
    are not everywhere, `chance` that a slide has the layer at all.
    """

    dye: str
    where: str
    amount: Range
    share: Range = (0.2, 0.8)
    chance: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A stain: its `name`, the class that it belongs to, how often it is drawn within the class, and its layers."""

    name: str
    stain: str
    weight: float
    layers: tuple[Layer, ...] = field(default=())


_NUCLEI = Layer("haematoxylin", "nuclei", (0.35, 1.3))
_PALE_NUCLEI = Layer("counterstain", "nuclei", (0.15, 0.9))
_GROUND = Layer("counterstain", "cytoplasm", (0.02, 0.15))
_RED_NUCLEI = Layer("nuclear fast red", "nuclei", (0.25, 0.9))
_PIGMENT = Layer("pigment", "cells", (0.3, 1.0), (0.001, 0.04), chance=0.25)
_BLOOD = Layer("blood", "cells", (0.3, 0.9), (0.002, 0.08), chance=0.5)


def _he() -> list[Recipe]:
    plain = (_NUCLEI, Layer("haematoxylin", "cytoplasm", (0.0, 0.2)), Layer("eosin", "cytoplasm", (0.25, 0.9)))
    mucin = Layer("haematoxylin", "patches", (0.05, 0.3), (0.05, 0.4), chance=0.3)
    few = (Layer("haematoxylin", "positive nuclei", (0.35, 1.3), (0.05, 0.6)), *plain[1:])
    blue = (_NUCLEI, Layer("haematoxylin", "cytoplasm", (0.15, 0.6)), Layer("eosin", "cytoplasm", (0.15, 0.7)))
    return [
        Recipe("H&E, blue", "HE", 0.15, (*blue, _BLOOD)),
        Recipe("H&E, few nuclei", "HE", 0.4, (*few, _BLOOD)),
        Recipe("H&E", "HE", 1.0, (*plain, Layer("eosin", "nuclei", (0.0, 0.35)), mucin, _PIGMENT, _BLOOD)),
        Recipe("HES", "HE", 0.12, (*plain, Layer("orange g", "collagen", (0.1, 0.5), (0.2, 0.6)), _BLOOD)),
    ]


def _ihc() -> list[Recipe]:
    blue = (Layer("haematoxylin", "nuclei", (0.2, 1.1)), Layer("haematoxylin", "cytoplasm", (0.02, 0.25)))
    recipes = [
        Recipe("no positive cell", "IHC", 0.6, (_PALE_NUCLEI, _GROUND, _PIGMENT)),
        Recipe("no positive cell", "IHC", 0.2, blue),
    ]
    chromogens = {"dab": 4.0, "aec": 0.6, "fast red": 0.8, "green chromogen": 0.08, "teal chromogen": 0.06}
    chromogens |= {"purple chromogen": 0.1, "indigo chromogen": 0.06, "yellow chromogen": 0.06}
    for dye, weight in chromogens.items():
        for where in ("positive nuclei", "patches", "cells", "fibres"):
            few = 0.002 if dye == "dab" else 0.01
            positive = Layer(dye, where, (0.15, 1.6), (few, 0.7))
            haze = Layer(dye, "tissue", (0.0, 0.2), chance=0.7)
            recipes.append(Recipe(dye, "IHC", weight / 4, (_PALE_NUCLEI, _GROUND, positive, haze)))
    green = Layer("methyl green", "nuclei", (0.15, 0.7))
    recipes.append(Recipe("dab, methyl green", "IHC", 0.04, (green, Layer("dab", "patches", (0.3, 1.5), (0.01, 0.6)))))
    both = (Layer("dab", "positive nuclei", (0.3, 1.4), (0.01, 0.5)), Layer("fast red", "patches", (0.3, 1.2)))
    recipes.append(Recipe("dab and fast red", "IHC", 0.25, (_PALE_NUCLEI, _GROUND, *both)))
    everywhere = Layer("dab", "tissue", (0.15, 1.2))
    recipes.append(Recipe("dab", "IHC", 0.5, (_PALE_NUCLEI, everywhere, Layer("dab", "patches", (0.2, 1.2)))))
    return recipes


def _schiff() -> list[Recipe]:
    def schiff(low: float, high: float) -> tuple[Layer, ...]:
        return (Layer("schiff", "cytoplasm", (low, high)), Layer("schiff", "nuclei", (0.3 * low, high)))

    bright = Layer("schiff", "patches", (0.2, 1.2), (0.02, 0.4))
    membranes = Layer("schiff", "fibres", (0.2, 0.9), (0.05, 0.3))
    return [
        Recipe("PAS", "SPECIAL", 4.0, (_NUCLEI, *schiff(0.2, 1.2), bright)),
        Recipe("PAS, pale", "SPECIAL", 1.5, (_PALE_NUCLEI, *schiff(0.06, 0.3), bright, membranes)),
        Recipe("PAS, membranes", "SPECIAL", 0.5, (_PALE_NUCLEI, *schiff(0.06, 0.3), membranes)),
        Recipe(
            "Alcian blue and PAS",
            "SPECIAL",
            0.6,
            (_PALE_NUCLEI, *schiff(0.1, 0.6), Layer("alcian blue", "patches", (0.3, 1.1), (0.02, 0.4))),
        ),
    ]


def _connective() -> list[Recipe]:
    iron = Layer("silver", "nuclei", (0.2, 0.9))
    recipes = []
    for dye in ("methyl blue", "light green"):
        collagen = Layer(dye, "collagen", (0.3, 1.1), (0.1, 0.7))
        muscle = Layer("ponceau", "muscle", (0.25, 0.9))
        recipes += [Recipe("trichrome", "SPECIAL", 0.5, (nuclei, collagen, muscle)) for nuclei in (iron, _NUCLEI)]
    azan = (Layer("azocarmine", "muscle", (0.2, 0.8)), Layer("methyl blue", "collagen", (0.3, 1.0), (0.2, 0.7)))
    elastic = (iron, Layer("picric acid", "muscle", (0.2, 0.9)), Layer("fuchsin", "collagen", (0.2, 0.9)))
    fibres = Layer("silver", "fibres", (0.4, 1.4), (0.03, 0.25))
    sirius = (Layer("sirius red", "collagen", (0.3, 1.2), (0.1, 0.7)), Layer("picric acid", "tissue", (0.1, 0.5)))
    safranin = (Layer("ponceau", "patches", (0.3, 1.0), (0.1, 0.6)), Layer("light green", "cytoplasm", (0.2, 0.6)))
    return recipes + [
        Recipe("azan", "SPECIAL", 0.3, (Layer("azocarmine", "nuclei", (0.3, 1.0)), *azan)),
        Recipe("elastic, van Gieson", "SPECIAL", 0.5, (*elastic, fibres)),
        Recipe("sirius red", "SPECIAL", 0.4, sirius),
        Recipe("safranin and fast green", "SPECIAL", 0.25, (iron, *safranin)),
    ]


def _silver() -> list[Recipe]:
    fibres = Layer("silver", "fibres", (0.5, 1.6), (0.03, 0.35))
    spots = Layer("silver", "cells", (0.5, 1.6), (0.002, 0.1))
    ground = Layer("silver ground", "tissue", (0.08, 0.5))
    jones = (_NUCLEI, Layer("eosin", "cytoplasm", (0.05, 0.5)))
    black = Layer("silver", "tissue", (0.05, 0.5), chance=0.7)
    gold = (Layer("silver ground", "tissue", (0.3, 1.4)), spots)
    return [
        Recipe("silver, bare", "SPECIAL", 0.6, (ground, fibres, Layer("silver", "nuclei", (0.0, 0.4)))),
        Recipe("silver, red nuclei", "SPECIAL", 0.4, (_RED_NUCLEI, ground, fibres)),
        Recipe("silver, green ground", "SPECIAL", 0.5, (Layer("light green", "tissue", (0.1, 0.8)), black, spots)),
        Recipe("silver, gold ground", "SPECIAL", 0.3, gold),
        Recipe("Jones", "SPECIAL", 0.6, (*jones, black, Layer("silver", "fibres", (0.4, 1.6), (0.1, 0.5)))),
    ]


def _blue() -> list[Recipe]:
    mucin = Layer("alcian blue", "patches", (0.25, 1.2), (0.02, 0.6))
    giemsa = (Layer("azure", "nuclei", (0.4, 1.4)), Layer("azure", "cytoplasm", (0.1, 0.6)))
    methylene = (Layer("methylene blue", "nuclei", (0.2, 1.3)), Layer("methylene blue", "cytoplasm", (0.1, 0.8)))
    iron = Layer("prussian blue", "cells", (0.3, 1.2), (0.002, 0.2))
    pink = Layer("nuclear fast red", "cytoplasm", (0.05, 0.4))
    myelin = Layer("luxol blue", "collagen", (0.2, 0.9), (0.2, 0.8))
    violet = Layer("cresyl violet", "nuclei", (0.3, 1.2))
    return [
        Recipe("Alcian blue, red nuclei", "SPECIAL", 0.4, (_RED_NUCLEI, pink, mucin)),
        Recipe("Alcian blue, blue nuclei", "SPECIAL", 0.3, (_PALE_NUCLEI, mucin)),
        Recipe("Giemsa", "SPECIAL", 0.6, (*giemsa, Layer("eosin", "muscle", (0.05, 0.5)))),
        Recipe("methylene blue", "SPECIAL", 0.5, methylene),
        Recipe("acid-fast", "SPECIAL", 0.25, (*methylene, Layer("fuchsin", "cells", (0.3, 1.0), (0.001, 0.03)))),
        Recipe("Prussian blue", "SPECIAL", 0.5, (_RED_NUCLEI, pink, iron)),
        Recipe("Luxol blue", "SPECIAL", 0.3, (violet, myelin, Layer("cresyl violet", "cytoplasm", (0.0, 0.2)))),
        Recipe("cresyl violet", "SPECIAL", 0.2, (violet, Layer("cresyl violet", "cytoplasm", (0.05, 0.4)))),
    ]


def _cytology() -> list[Recipe]:
    """Cells rather than tissue: much nucleus, and cytoplasm of several colours in Papanicolaou's stain."""
    green = Layer("light green", "muscle", (0.05, 0.4))
    orange = (Layer("orange g", "collagen", (0.0, 0.3), chance=0.6), Layer("eosin", "patches", (0.0, 0.4), chance=0.6))
    purple = (Layer("azure", "nuclei", (0.4, 1.4)), Layer("cresyl violet", "cytoplasm", (0.05, 0.5)))
    return [
        Recipe("Papanicolaou", "SPECIAL", 0.8, (Layer("counterstain", "nuclei", (0.3, 1.3)), green, *orange)),
        Recipe("May-Gruenwald-Giemsa", "SPECIAL", 0.5, (*purple, Layer("eosin", "patches", (0.0, 0.4), chance=0.6))),
    ]


def _red() -> list[Recipe]:
    amyloid = Layer("congo red", "patches", (0.2, 1.0), (0.01, 0.5))
    mucin = Layer("fuchsin", "patches", (0.3, 1.2), (0.01, 0.3))
    yellow = Layer("picric acid", "tissue", (0.1, 0.9))
    fat = Layer("congo red", "cells", (0.4, 1.4), (0.02, 0.5))
    return [
        Recipe("Congo red", "SPECIAL", 0.7, (_NUCLEI, Layer("congo red", "cytoplasm", (0.03, 0.35)), amyloid)),
        Recipe("mucicarmine", "SPECIAL", 0.4, (_NUCLEI, yellow, mucin)),
        Recipe("oil red", "SPECIAL", 0.2, (_PALE_NUCLEI, _GROUND, fat)),
    ]


RECIPES = (*_he(), *_ihc(), *_schiff(), *_connective(), *_silver(), *_blue(), *_cytology(), *_red())
