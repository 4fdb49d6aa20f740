"""Made-up studies of images: terms that sum to the logits, effects that ablation confirms."""

from __future__ import annotations

import numpy as np
import torch

from clt_lightning.analysis.study import Ablation, LayerCodes, Study
from clt_lightning.analysis.terms import term_rows


def make_study(
    label: int, seed: int, classes: int, layers: int, n_features: int, positions: int, full: bool, wrong: bool = False
) -> Study:
    """A study of one image; `wrong`: it is taken for the class after its own."""
    rng = np.random.default_rng(seed)
    rows = term_rows(layers)
    terms = rng.normal(0, 0.6, (len(rows), classes))
    terms[[n for n, (kind, _) in enumerate(rows) if kind == "skip"]] = 0
    terms[rows.index(("features", 0)), (label + wrong) % classes] += 16
    terms[rows.index(("attention", 1)), (label + (not wrong)) % classes] += 11
    replaced = terms + 0.1 * rng.normal(size=terms.shape)
    replaced[[n for n, (kind, _) in enumerate(rows) if kind == "error"]] = 0
    logits = torch.from_numpy(terms.sum(0))
    order = logits.argsort(descending=True)
    asked = order[: classes if full else 5]
    if label not in asked.tolist():
        asked[-1] = label
    first, second = order[:2].tolist()
    questions = [(first, second), *([(first, label)] if label not in (first, second) else [])]
    codes, layer, feature = [], [], []
    for number in range(layers):
        alive = np.array([f for f in range(n_features) if f % 7 != 6])
        chosen = np.sort(rng.choice(alive, 12, replace=False))
        maps = rng.uniform(0.2, 3, (12, positions)) * (rng.random((12, positions)) < 0.3)
        maps[np.arange(12), rng.integers(0, positions, 12)] = 2.5
        here = rng.normal(0, 0.2, (len(questions), 12, positions)) * (maps > 0)
        codes.append(LayerCodes(*(torch.from_numpy(a).float() for a in (chosen, maps, here))))
        codes[-1] = LayerCodes(torch.from_numpy(chosen), codes[-1].maps, codes[-1].effects)
        layer += [number] * 12
        feature += chosen.tolist()
    total = torch.from_numpy(rng.normal(0, 1, (len(layer), len(asked) + 1)))
    place = {c: n for n, c in enumerate(asked.tolist())}
    integrated = torch.full((len(questions), len(layer)), torch.nan, dtype=torch.float64)
    ablations = []
    for number, (a, b) in enumerate(questions):
        effect = total[:, place[a]] - total[:, place[b]]
        if full:
            integrated[number] = effect = effect * 0.97
        deciding = effect.argsort(descending=True)[:5].tolist()
        for chosen_rows in [*([row] for row in deciding), deciding]:
            after = logits.clone()
            after[asked] -= 0.95 * total[chosen_rows, :-1].sum(0)
            ablations.append(Ablation(number, list(chosen_rows), float(effect[chosen_rows].sum()), after))
    return Study(
        logits,
        torch.from_numpy(replaced.sum(0)),
        asked,
        questions,
        torch.from_numpy(terms),
        torch.from_numpy(replaced) if full else None,
        torch.tensor(layer),
        torch.tensor(feature),
        total,
        0.4 * total,
        integrated,
        torch.ones(len(layer), dtype=torch.bool),
        ablations,
        codes,
        positions,
    )
