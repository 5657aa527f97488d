from collections import Counter, defaultdict

import pytest

from fedsim.core.errors import DataError
from fedsim.data import lexicon
from fedsim.data.embedded import EMBEDDED_TASKS, NUM_AUTHORS, TRAIN_ROWS, VALIDATION_ROWS, generate

TASKS = tuple(EMBEDDED_TASKS)


@pytest.fixture(scope="module", params=TASKS)
def corpus(request):
    return EMBEDDED_TASKS[request.param], *generate(request.param)


def test_the_corpus_is_the_same_every_time(corpus):
    task, train, validation = corpus
    assert generate(task.name) == (train, validation)


def test_rows_have_the_columns_of_their_task(corpus):
    task, train, validation = corpus
    assert (len(train), len(validation)) == (TRAIN_ROWS, VALIDATION_ROWS)
    for row in train + validation:
        assert set(row) == {*task.columns, "author"}
        assert all(row[field].strip() for field in task.fields)
        assert not task.labels or row["label"] in task.labels


def test_no_text_stands_twice(corpus):
    task, train, validation = corpus
    texts = [row[task.fields[0]] for row in train + validation]
    assert len(set(texts)) == len(texts)


def test_labels_are_balanced_in_both_parts(corpus):
    task, train, validation = corpus
    if not task.labels:
        assert all("label" not in row for row in train + validation)
        return
    for rows in (train, validation):
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(task.labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_rows_are_shuffled(corpus):
    task, train, _ = corpus
    firsts = Counter(row.get("label") for row in train[:: len(task.groups)])
    assert len(firsts) == len(task.groups)  # made label after label, such a stride would meet one label alone


def test_authors_differ_in_size_and_labels(corpus):
    task, train, _ = corpus
    labels_of = defaultdict(Counter)
    for row in train:
        labels_of[row["author"]][row.get("label")] += 1
    sizes = sorted(sum(counts.values()) for counts in labels_of.values())
    assert 60 <= len(labels_of) <= NUM_AUTHORS
    assert sizes[-len(sizes) // 10] > 3 * sizes[len(sizes) // 10]
    if task.of_responses:
        return
    skewed = sum(max(counts.values()) / sum(counts.values()) > 1.5 / len(task.labels) for counts in labels_of.values())
    assert skewed > len(labels_of) / 3


def _judgements(text):
    """Read the signs of a review's clauses with the lexicon, as a person would."""
    praise = {*lexicon.POSITIVE, *(word for pair in lexicon.POSITIVE_VERBS for word in pair)}
    blame = {*lexicon.NEGATIVE, *(word for pair in lexicon.NEGATIVE_VERBS for word in pair)}
    signs, negated = [], False
    for word in text.split():
        if word == "not":
            negated = True
        elif word in praise or word in blame:
            signs.append((word in praise) != negated)
            negated = False
    return signs


def test_a_review_means_what_its_label_says():
    train, validation = generate("reviews")
    for row in train + validation:
        signs = _judgements(row["text"])
        assert 2 <= len(signs) <= 3
        assert (sum(signs) > len(signs) / 2) == (row["label"] == "positive")


def test_reviews_need_more_than_one_word():
    train, _ = generate("reviews")
    mixed = sum(len(set(_judgements(row["text"]))) == 2 for row in train)
    negated = sum(" not " in row["text"] for row in train)
    assert mixed > 0.15 * len(train)
    assert negated > 0.2 * len(train)


def _topics(text):
    topic_of = {noun: topic for topic, nouns in lexicon.TOPIC_NOUNS.items() for noun in nouns}
    return Counter(topic_of[word] for word in text.split() if word in topic_of)


def test_a_topical_text_is_mostly_about_its_label():
    train, validation = generate("topics")
    for row in train + validation:
        counts = _topics(row["text"])
        assert counts[row["label"]] > sum(counts.values()) / 2


def test_a_pair_agrees_when_both_speak_of_the_same_topic():
    train, validation = generate("agreement")
    for row in train + validation:
        spoken, reported = _topics(row["a"]).most_common(1)[0][0], _topics(row["b"])
        assert len(reported) == 1
        assert (spoken in reported) == (row["label"] == "true")


def test_an_answer_follows_from_its_text_and_question():
    for row in [row for rows in generate("questions") for row in rows]:
        if row["label"] == "verdict":
            signs = _judgements(row["text"])
            assert row["answer"] == ("it was great ." if sum(signs) > len(signs) / 2 else "it was terrible .")
            assert "good" in row["question"] or "how" in row["question"]
        else:
            assert row["answer"] == f"it is about {_topics(row['text']).most_common(1)[0][0]} ."
            assert "about" in row["question"] or "topic" in row["question"]


def test_meanings_of_the_lexicon_do_not_overlap():
    assert not set(lexicon.POSITIVE) & set(lexicon.NEGATIVE)
    nouns = [noun for nouns in lexicon.TOPIC_NOUNS.values() for noun in nouns]
    assert len(nouns) == len(set(nouns))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(DataError, match=r"no task 'review'.*did you mean 'reviews'"):
        generate("review")
