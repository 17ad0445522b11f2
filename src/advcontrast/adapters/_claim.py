"""What robustbench wants to know about a model, in the layout of its ``model_info``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._checks import check_real, complaint, type_name
from ..evaluation import ResultCard

_ABOUT = dict.fromkeys(("link", "name", "authors", "dataset", "venue", "architecture"), str)
_KINDS: dict[str, type] = {**_ABOUT, "additional_data": bool}


def claim(figures: ResultCard | Mapping[str, float], *, eps: float, **about: Any) -> str:
    """Return the JSON of robustbench's ``model_info`` for a card of one run, or for ``{"TA": 0.82, "AA": 0.5}``.

    TA and AA are fractions, for the whole test set; ``eps`` is in units of pixels. ``about`` are the strings link,
    name, authors, dataset ("cifar10"), venue and architecture, and whether additional_data was used.
    """
    if isinstance(figures, ResultCard) and len(figures.seeds) != 1:
        raise ValueError(complaint("claim", "a card of one run", f"{len(figures.seeds)} runs", "Claim one model"))
    found = {k: r.mean for k, r in figures.results.items()} if isinstance(figures, ResultCard) else figures
    if not isinstance(found, Mapping) or not {"TA", "AA"} <= found.keys():
        got = ", ".join(map(str, found)) or "none" if isinstance(found, Mapping) else type_name(found)
        raise ValueError(complaint("claim", "figures with TA and AA", got, "Evaluate with autoattack first"))
    check_real("claim", "TA", found["TA"], low=0, high=1, remedy="Pass fractions, not percent")
    check_real(
        "claim", "AA", found["AA"], low=0, high=float(found["TA"]), remedy="No attack helps; see that both agree"
    )
    check_real("claim", "eps", eps, low=0, above=True, remedy="Pass the radius in units of pixels, such as 8 / 255")
    if about.keys() != _KINDS.keys():
        raise TypeError(
            complaint("claim", ", ".join(_KINDS), ", ".join(about) or "none of them", "Pass these and no others")
        )
    for name, kind in _KINDS.items():
        if not isinstance(about[name], kind):
            raise TypeError(complaint("claim", f"{name} to be a {kind.__name__}", type_name(about[name]), "Pass one"))
    pixels = round(255 * eps) if eps < 1 else 0
    radius = f"{pixels}/255" if pixels and abs(255 * eps - pixels) < 1e-6 else f"{eps:g}"
    clean, robust = (f"{100 * found[name]:.2f}" for name in ("TA", "AA"))
    entries = {"number_forward_passes": 1, "eps": radius, "clean_acc": clean, "reported": robust}
    return json.dumps({**about, **entries, "autoattack_acc": robust}, indent=2) + "\n"
