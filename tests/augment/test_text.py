"""UDA's augmentations of text: probabilities from the equations, what is drawn, which paraphrases are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from semisup.augment import TfidfReplacement, back_translate
from semisup.errors import SemisupError

CORPUS = [
    "the film was a dull and slow film",
    "the plot of the film was thin",
    "a Gripping thriller , the best of the year",
    "",
    "slow slow slow and the end was dull",
]


def idf_of(corpus: Sequence[str]) -> dict[str, float]:
    """log(sentences / sentences with the word), word by word."""
    words = {word for sentence in corpus for word in sentence.split()}
    return {word: math.log(len(corpus) / sum(word in sentence.split() for sentence in corpus)) for word in words}


def probabilities(corpus: Sequence[str], words: Sequence[str], p: float) -> list[float]:
    """The paper's formula with 1/n in it, in python floats."""
    idf = idf_of(corpus)
    scores = [sum(other == word for other in words) / len(words) * idf[word] for word in words]
    total = sum(max(scores) - score for score in scores)
    return [min(1.0, p * len(words) * (max(scores) - score) / total) for score in scores]


def drawn_words(corpus: Sequence[str]) -> dict[str, float]:
    """Word -> probability that it is the new one."""
    idf = idf_of(corpus)
    sums = {
        word: sum(s.split().count(word) / len(s.split()) * idf[word] for s in corpus if word in s.split())
        for word in idf
    }
    total = sum(max(sums.values()) - value for value in sums.values())
    return {word: (max(sums.values()) - value) / total for word, value in sums.items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def replace() -> TfidfReplacement:
    return TfidfReplacement(CORPUS)


@pytest.mark.parametrize("sentence", [sentence for sentence in CORPUS if sentence])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.7, 1.0])
def test_probabilities_match_the_formula(replace: TfidfReplacement, sentence: str, p: float) -> None:
    words = sentence.split()
    np.testing.assert_allclose(replace.probabilities(words, p), probabilities(CORPUS, words, p), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sentence", [sentence for sentence in CORPUS if sentence])
def test_probabilities_sum_to_p_n_and_the_top_word_stays(replace: TfidfReplacement, sentence: str) -> None:
    words = sentence.split()
    found = replace.probabilities(words, 0.3)
    assert found.max() < 1, "none is capped here"
    assert found.sum() == pytest.approx(0.3 * len(words))
    idf = idf_of(CORPUS)
    top = max(range(len(words)), key=lambda i: words.count(words[i]) * idf[words[i]])
    assert found[top] == 0
    assert (found > 0).any()


def test_probabilities_are_capped_at_1(replace: TfidfReplacement) -> None:
    """One of two words takes it all: p n = 1.8."""
    assert replace.probabilities(["the", "thin"], 0.9).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("words", [["thin"], ["the", "the"], ["thin", "plot"], []])
def test_words_of_one_score_stay(replace: TfidfReplacement, words: list[str]) -> None:
    assert replace.probabilities(words, 1.0).tolist() == [0.0] * len(words)
    assert replace([" ".join(words)], 1.0, seeded()) == [" ".join(words)]


def test_an_unseen_word_tells_as_much_as_one_of_a_single_sentence(replace: TfidfReplacement) -> None:
    seen, unseen = (replace.probabilities(["the", "was", word], 0.2) for word in ("thin", "unheard-of"))
    np.testing.assert_allclose(seen, unseen, rtol=1e-12)


@pytest.mark.parametrize("sentence", ["thrice thrice once", "once unheard-of"])
def test_scores_that_differ_by_rounding_are_equal(sentence: str) -> None:
    """2 log(9/3) and log(9/1); log 9, and log 9 plus scikit-learn's 1 less it: the gaps would be sure to replace."""
    replace = TfidfReplacement(["thrice once"] + ["thrice common"] * 2 + ["common"] * 6)
    assert replace.probabilities(sentence.split(), 1.0).tolist() == [0.0] * len(sentence.split())


def test_what_comes_out_is_distributed_as_the_formulas_say(replace: TfidfReplacement) -> None:
    """At each place the old word with 1 - P, else the corpus' words by max S - S(w); 20,000 draws, 5 stds."""
    words, p, count = CORPUS[1].split(), 0.4, 20_000
    out = [sentence.split() for sentence in replace([CORPUS[1]] * count, p, seeded(1))]
    new = drawn_words(CORPUS)
    assert min(new.values()) == 0, "the word of the largest sum is never drawn"
    for i, chance in enumerate(probabilities(CORPUS, words, p)):
        for word, share in new.items():
            expected = chance * share + (1 - chance) * (word == words[i])
            got = sum(sentence[i] == word for sentence in out) / count
            assert abs(got - expected) <= 5 * math.sqrt(expected * (1 - expected) / count), (words[i], word)


def test_places_are_drawn_independently(replace: TfidfReplacement) -> None:
    """The number of words that change has the variance of independent draws; one draw per sentence has far more."""
    words, count = CORPUS[1].split(), 5_000
    new = drawn_words(CORPUS)
    chances = [chance * (1 - new[word]) for chance, word in zip(probabilities(CORPUS, words, 0.4), words, strict=True)]
    changed = [
        sum(a != b for a, b in zip(sentence.split(), words, strict=True))
        for sentence in replace([CORPUS[1]] * count, 0.4, seeded(2))
    ]
    assert np.var(changed) == pytest.approx(sum(c * (1 - c) for c in chances), rel=0.1)


def test_the_seed_decides_and_the_generator_moves_on(replace: TfidfReplacement) -> None:
    assert replace(CORPUS, 0.5, seeded(3)) == replace(CORPUS, 0.5, seeded(3))
    assert replace(CORPUS, 0.5, seeded(3)) != replace(CORPUS, 0.5, seeded(4))
    generator = seeded(3)
    assert replace(CORPUS, 0.5, generator) != replace(CORPUS, 0.5, generator)


def test_p_0_keeps_every_word_its_case_and_its_order(replace: TfidfReplacement) -> None:
    assert replace(["a  Gripping\tthriller , the best ", ""], 0.0, seeded()) == ["a Gripping thriller , the best", ""]
    assert replace([], 0.5, seeded()) == []


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], r"must have a word in it, got 0 sentences"),
        (["", "  "], r"must have a word in it, got 2 sentences"),
        ("the film", r"corpus must be a sequence of sentences, got the one string 'the film'"),
        (["the only sentence"], r"different TF-IDF"),
        (["a b c", "d e f"], r"different TF-IDF"),
    ],
)
def test_a_useless_corpus_is_refused(corpus: Sequence[str], message: str) -> None:
    with pytest.raises(SemisupError, match=message):
        TfidfReplacement(corpus)


@pytest.mark.parametrize("p", [-0.1, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(replace: TfidfReplacement, p: float) -> None:
    with pytest.raises(SemisupError, match=r"p must lie in \[0, 1\]"):
        replace([], p, seeded())
    with pytest.raises(SemisupError, match=r"p must lie in \[0, 1\]"):
        replace.probabilities(["the"], p)


def test_one_string_is_no_batch(replace: TfidfReplacement) -> None:
    with pytest.raises(SemisupError, match="sentences must be a sequence"):
        replace("the film", 0.5, seeded())
    with pytest.raises(SemisupError, match="sentences must be a sequence"):
        back_translate("the film", Dictionary({}), Dictionary({}))


class Dictionary:
    """A translator that knows some sentences by heart, repeats the others, and remembers what it was asked."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.asked: list[list[str]] = []

    def __call__(self, sentences: list[str], /) -> tuple[str, ...]:
        self.asked.append(list(sentences))
        answers = tuple(self.known.get(sentence, sentence) for sentence in sentences)
        sentences.clear()  # its own copy
        return answers


def test_sentences_go_there_and_back_in_one_call_each() -> None:
    there = Dictionary({"the film was dull": "le film était ennuyeux", "a good start": "un bon début"})
    back = Dictionary({"le film était ennuyeux": "the movie was boring", "un bon début": "a nice beginning"})
    sentences = ["the film was dull", "a good start", "already French"]
    assert back_translate(sentences, there, back) == ["the movie was boring", "a nice beginning", "already French"]
    assert there.asked == [["the film was dull", "a good start", "already French"]]
    assert back.asked == [["le film était ennuyeux", "un bon début", "already French"]]
    assert sentences == ["the film was dull", "a good start", "already French"]


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (10, 10, True),
        (9, 10, False),  # the original is short
        (12, 9, False),  # the paraphrase is
        (20, 30, True),  # exactly half longer
        (20, 31, False),
        (20, 10, True),  # exactly half shorter
        (22, 10, False),
        (30, 20, True),  # a third of the original, though half of the paraphrase
        (21, 31, True),
        (21, 32, False),
    ],
)
def test_short_and_too_different_paraphrases_are_rejected(old: int, new: int, kept: bool) -> None:
    original, paraphrase = "o" * old, "p" * new
    found = back_translate([original], Dictionary({original: "x"}), Dictionary({"x": paraphrase}))
    assert found == [paraphrase if kept else original]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["one sentence for two"], r"as many sentences as it gets, got 1 for 2"),
        ([], r"as many sentences as it gets, got 0 for 2"),
        ("ab", r"a sequence of strings, got 'ab'"),
        ([None, "two"], r"a sequence of strings, got \[None, 'two'\]"),
    ],
)
@pytest.mark.parametrize("name", ["there", "back"])
def test_a_translator_that_returns_something_else_is_named(answer: Sequence[str], message: str, name: str) -> None:
    translators = {"there": Dictionary({}), "back": Dictionary({}), name: lambda sentences: answer}
    with pytest.raises(SemisupError, match=f"translator `{name}`: must return {message}"):
        back_translate(["the first one", "the second one"], **translators)
