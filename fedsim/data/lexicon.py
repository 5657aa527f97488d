"""The embedded corpus's vocabulary, about 500 words grouped by meaning."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _words(
    """great good excellent wonderful delightful charming brilliant superb lovely splendid fantastic pleasant amazing
    impressive enjoyable fresh clever graceful warm beautiful elegant perfect fine friendly generous gentle helpful
    honest inspiring joyful lively memorable polished refreshing reliable smooth thoughtful vivid worthy bright"""
)
"""Adjectives that praise."""

NEGATIVE = _words(
    """terrible bad awful horrible dreadful boring dull poor ugly nasty clumsy disappointing annoying bland broken
    careless cheap cold confusing crude dirty dismal empty foolish grim harsh hollow lazy messy noisy painful pointless
    rude sloppy slow stale tedious tiresome unpleasant weak"""
)
"""Adjectives that blame."""

POSITIVE_VERBS = (
    ("liked", "like"),
    ("loved", "love"),
    ("enjoyed", "enjoy"),
    ("admired", "admire"),
    ("praised", "praise"),
)
"""Verbs that praise: past tense and infinitive."""

NEGATIVE_VERBS = (
    ("hated", "hate"),
    ("disliked", "dislike"),
    ("regretted", "regret"),
    ("feared", "fear"),
    ("mocked", "mock"),
)
"""Verbs that blame: past tense and infinitive."""

TOPIC_NOUNS: dict[str, tuple[str, ...]] = {
    "sports": _words(
        """sports match goal referee coach stadium team race runner tennis medal trophy league player defender striker
        gym marathon jersey captain athlete tournament"""
    ),
    "food": _words(
        """food soup dinner recipe cook kitchen bread cheese salad dessert menu waiter restaurant spice sauce breakfast
        bakery noodle pasta fruit meal chef"""
    ),
    "music": _words(
        """music song singer album guitar piano drummer concert melody band orchestra choir violin rhythm chorus lyric
        trumpet opera ballad composer duet stage"""
    ),
    "travel": _words(
        """travel hotel train flight airport ticket beach luggage guide passport harbour ferry tour hostel journey map
        museum cruise suitcase platform border pilot"""
    ),
    "science": _words(
        """science experiment laboratory telescope theory professor planet microscope atom formula physics chemistry
        lecture hypothesis molecule laser proof gravity comet researcher sensor equation"""
    ),
    "nature": _words(
        """nature forest river mountain meadow valley lake deer eagle flower garden waterfall storm glacier island
        canyon birch fox owl desert cliff sunrise"""
    ),
}
"""Nouns by topic; the first of each is the topic's name."""

TOPICS = tuple(TOPIC_NOUNS)

PEOPLE = _words(
    """cousin neighbour uncle aunt sister brother teacher doctor farmer sailor student friend baker painter writer
    nurse lawyer driver clerk tailor"""
)

PLAIN_ADJECTIVES = _words("old new big tiny famous strange local early second next usual other whole last first")
"""Adjectives that neither praise nor blame."""

SPEECH = (
    "talked about",
    "wrote about",
    "asked about",
    "heard of",
    "thought of",
    "dreamed of",
    "read about",
    "described",
)

TIMES = (
    "on monday", "on friday", "on sunday", "after lunch", "before noon", "last week", "this year", "in the morning",
    "in the evening", "at night", "in spring", "in winter", "two days ago", "once again", "as usual", "for an hour",
)  # fmt: skip

OPENERS = (
    "well ,", "to begin with ,", "in my view ,", "as far as i know ,", "you know ,", "so ,", "frankly ,", "in short ,",
    "as i said ,", "by the way ,", "after all ,", "this time ,",
)  # fmt: skip

DEGREES = _words("very really quite rather so truly somewhat clearly always mostly")

AGREE = _words("Yes Right True Sure Indeed Correct")
DISAGREE = _words("No Wrong False Never Hardly Incorrect")
