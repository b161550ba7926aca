"""Which languages are taken for which: counts against literal ones and scikit-learn's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np
import pytest

from benchmark.claims import confusions, verdicts
from tests.benchmark.claimed import single, systems

LANGUAGES = ("cmn", "de", "en-us", "es", "fi", "fr", "hi", "ru", "sw", "tr")


def said_rows(rng: np.random.Generator, chances: Mapping[tuple[str, str], float]) -> list[dict[str, str]]:
    """Answers about 30 clips of each language: right, but for some that are taken for another with these chances."""
    rows = []
    for truth, number in product(LANGUAGES, range(30)):
        said = next(
            (other for (one, other), chance in chances.items() if one == truth and rng.random() < chance), truth
        )
        rows.append({"id": f"{truth}-{number}", "reference": truth, "prediction": said, "correct": str(said == truth)})
    return rows


def test_confusions_of_related_languages_are_counted_apart_from_others() -> None:
    rng = np.random.default_rng(0)
    before = {("de", "en-us"): 0.6, ("es", "fr"): 0.6, ("fr", "fi"): 0.3, ("hi", "ru"): 0.5}
    after = {("de", "en-us"): 0.1, ("es", "fr"): 0.1, ("fr", "fi"): 0.3, ("hi", "ru"): 0.5}
    found = {
        f"{variant}-0": [said_rows(rng, chances) for _ in range(2)]
        for variant, chances in (("a", after), ("b", before))
    }
    claim, plan = single("tiny_language")
    verdict = verdicts.judge_claim(replace(claim, confusions=True), plan, *systems(found, "tiny_language"))
    branch, mixed, outside, family = verdict.rows
    rows = [row for probe in found["b-0"] for row in probe]
    own = [row for row in rows if row["reference"] in ("de", "en-us", "es", "fr")]
    pairs = {("de", "en-us"), ("en-us", "de"), ("es", "fr"), ("fr", "es")}
    assert branch.second == pytest.approx(100 * fmean((row["reference"], row["prediction"]) in pairs for row in own))
    kept = [
        [row for row in probe if row["reference"] in ("de", "en-us", "es", "fr") and row["prediction"] != "fi"]
        for probe in found["b-0"]
    ]
    shares = [fmean(row["reference"] != row["prediction"] for row in probe) for probe in kept]
    assert mixed.second == pytest.approx(100 * fmean(shares))
    assert outside.second == pytest.approx(100 * fmean(row["prediction"] == "fi" for row in own))
    kin = [row for row in rows if row["reference"] in ("de", "en-us", "es", "fr", "hi", "ru")]
    wrong = [row["prediction"] not in (row["reference"], "fi") for row in kin]
    assert family.second == pytest.approx(100 * fmean(wrong))
    assert (verdict.word, outside.word) == ("shown for one seed", "not resolved")
    assert "frozen, tiny_language: taken for another of its branch: +" in verdicts.verdict_sentence(verdict)
    assert verdicts.verdict_rows(verdict)[0][2] == "tiny_language: taken for another of its branch ↓"


def test_the_table_of_confusions_is_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix

    probes = [said_rows(np.random.default_rng(seed), {("de", "fr"): 0.4, ("tr", "fi"): 0.2}) for seed in range(3)]
    columns, rows = confusions.confusion_matrix(probes)
    assert columns[1:] == sorted(LANGUAGES)
    assert [row[0] for row in rows] == sorted(LANGUAGES)
    both = [[row[key] for probe in probes for row in probe] for key in ("reference", "prediction")]
    expected = 100 * confusion_matrix(*both, labels=sorted(LANGUAGES), normalize="true")
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], expected, atol=0.051)


def test_the_languages_with_relatives_are_the_corpus_own() -> None:
    from benchmark.corpora.tiny import FAMILIES
    from benchmark.corpora.tiny import LANGUAGES as OWN

    assert sorted(OWN) == sorted(LANGUAGES)
    branches = {FAMILIES[language]: {each for each in OWN if FAMILIES[each] == FAMILIES[language]} for language in OWN}
    assert {branch for branch in map(frozenset, branches.values()) if len(branch) > 1} == set(confusions.BRANCHES)
    named = frozenset().union(*confusions.BRANCHES, *confusions.FAMILY)
    assert named < set(OWN)
    assert all(any(branch < family for family in confusions.FAMILY) for branch in confusions.BRANCHES)
