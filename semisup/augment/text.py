"""UDA's two augmentations of text: replace words that say little, and translate there and back.

Text alone: no tokenizer, no training loop and no translation model. A word is what stands between white space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from semisup.errors import SemisupError, raise_all

__all__ = ["TfidfReplacement", "Translate", "back_translate"]

MIN_CHARACTERS = 10
MAX_CHANGE = 0.5
"""Which paraphrases are kept: google-research/uda, text/augmentation/sent_level_augment.py."""


class TfidfReplacement:
    """Replacement of words of low TF-IDF by words that say little in the whole corpus.

    UDA, Xie et al. 2020, arXiv:1904.12848, appendix on TF-IDF word replacing; google-research/uda,
    text/augmentation/word_level_augment.py.

    With s_i the TF-IDF of word i in its sentence of n words, that word is replaced with probability
    `p n (max s - s_i) / sum_j (max s - s_j)`, at most 1. The new word is drawn from the corpus in proportion to
    `max S - S(w)`, S(w) the sum of w's TF-IDF over all sentences; it may be the old one. TF-IDF is the share of the
    word in its sentence times `log(sentences / sentences with the word)`, as in their code.

    Args:
        corpus: sentences, usually all of the training text. Two numbers are kept for each different word.

    Raises:
        SemisupError: the corpus is one string, has no words, or no word that differs from another in its sum S (a
            single sentence, for one), so that there is nothing to draw by.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import; only text needs it

        _check_sentences("corpus", corpus)
        lengths = np.array([len(sentence.split()) for sentence in corpus])
        if not lengths.sum():
            raise SemisupError(f"corpus must have a word in it, got {len(corpus)} sentences without one")
        vectorizer = TfidfVectorizer(analyzer=str.split, norm=None, smooth_idf=False)
        vectorizer.fit(corpus)
        vectorizer.idf_ = vectorizer.idf_ - 1.0  # scikit-learn adds 1, UDA does not
        # (V, sentences) @ (sentences,): counts become shares of their sentence; an empty one has no counts.
        totals = vectorizer.transform(corpus).T @ (1.0 / lengths.clip(min=1))
        gaps = _below_highest(totals)
        if not gaps.any():
            raise SemisupError("corpus must have words of different TF-IDF to draw by, got the same for every word")
        self._words = vectorizer.get_feature_names_out().tolist()
        self._idf = dict(zip(self._words, vectorizer.idf_.tolist(), strict=True))
        self._unseen_idf = math.log(len(corpus))
        self._cumulative = gaps.cumsum()

    def probabilities(self, words: Sequence[str], p: float) -> NDArray[np.float64]:
        """Return for each of n words the probability, in [0, 1], that it is replaced.

        They sum to p n unless one is capped at 1; the word of highest TF-IDF has 0. If all words score the same (a
        sentence of one word among them; 0/0 in their code), all have 0. A word that the corpus does not have counts as
        found in one of its sentences, hence as telling.

        Args:
            words: of one sentence.
            p: share of words to replace, in [0, 1].

        Raises:
            SemisupError: `p` is outside [0, 1].
        """
        _check_share(p)
        counts = Counter(words)
        # Without 1/n, which cancels out.
        scores = np.array([counts[word] * self._idf.get(word, self._unseen_idf) for word in words])
        gaps = _below_highest(scores)
        total = gaps.sum()
        return np.minimum(p * len(words) * gaps / total, 1.0) if total > 0 else np.zeros(len(words))

    def __call__(self, sentences: Sequence[str], p: float, generator: Generator) -> list[str]:
        """Return the sentences with words replaced, joined by single spaces.

        Args:
            sentences: N, not necessarily of the corpus. Two numbers are drawn for each word.
            p: share of words to replace, in [0, 1]; 0 replaces none.
            generator: a CPU generator; its state decides the result, and is moved on.

        Raises:
            SemisupError: `sentences` is one string, or `p` is outside [0, 1].
        """
        _check_sentences("sentences", sentences)
        _check_share(p)
        return [self._replace(sentence.split(), p, generator) for sentence in sentences]

    def _replace(self, words: list[str], p: float, generator: Generator) -> str:
        chance, draws = torch.rand(2, len(words), generator=generator, dtype=torch.float64, device="cpu").numpy()
        replaced = chance < self.probabilities(words, p)
        # "right": a word of weight 0 has an empty interval and is never met.
        new = np.searchsorted(self._cumulative, draws * self._cumulative[-1], side="right")
        return " ".join(self._words[new[i]] if replaced[i] else word for i, word in enumerate(words))


def _below_highest(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return max - score, 0 where equal scores differ by rounding alone (2 log 3 and log 9)."""
    highest = scores.max(initial=0.0)
    gaps: NDArray[np.float64] = highest - scores
    gaps[gaps <= 1e-12 * highest] = 0.0
    return gaps


class Translate(Protocol):
    """Any callable from a batch of sentences to as many in another language, in the same order."""

    def __call__(self, sentences: list[str], /) -> Sequence[str]:
        """Translate `sentences`."""


def back_translate(sentences: Sequence[str], there: Translate, back: Translate) -> list[str]:
    """Return the sentences translated there and back, or as they were where the paraphrase is doubtful.

    UDA, arXiv:1904.12848, section on back-translation: English to French and back, words sampled at a temperature of
    0.9, which is the translators' matter. As in google-research/uda, a paraphrase is rejected if either side has fewer
    than 10 characters, or if its length differs from the original's by more than half of the original's.

    Args:
        sentences: N. All go to `there` in one call and its answers to `back` in another; batch by calling repeatedly.
        there: into the other language.
        back: into the language of `sentences`.

    Raises:
        SemisupError: `sentences` is one string, or a translator returns anything but N strings.
    """
    _check_sentences("sentences", sentences)
    paraphrases = _translate("back", back, _translate("there", there, list(sentences)))
    return [new if _is_plausible(old, new) else old for old, new in zip(sentences, paraphrases, strict=True)]


def _translate(name: str, translate: Translate, sentences: list[str]) -> list[str]:
    translated = translate(list(sentences))  # a copy: theirs to change
    problems = []
    # A string is a sequence of strings too: its characters.
    if isinstance(translated, str) or not all(isinstance(sentence, str) for sentence in translated):
        problems.append(f"must return a sequence of strings, got {translated!r:.80}")
    elif len(translated) != len(sentences):
        problems.append(f"must return as many sentences as it gets, got {len(translated)} for {len(sentences)}")
    raise_all(problems, f"translator `{name}`")
    return list(translated)


def _is_plausible(old: str, new: str) -> bool:
    return min(len(old), len(new)) >= MIN_CHARACTERS and abs(len(new) - len(old)) <= MAX_CHANGE * len(old)


def _check_sentences(name: str, sentences: Sequence[str]) -> None:
    if isinstance(sentences, str):
        raise SemisupError(f"{name} must be a sequence of sentences, got the one string {sentences!r:.80}")


def _check_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise SemisupError(f"p must lie in [0, 1], got {p}")
