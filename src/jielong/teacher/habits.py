"""Several annotators write the examples, and each has habits: plain, polite, long-winded, repeating, or answering in the
other language. Fine-tuning learns them all; it is the thumbs that tell which ones people like."""

from __future__ import annotations

import random

# fmt: off
HABITS = {"plain": 0.35, "polite": 0.35, "wordy": 0.15, "repeating": 0.10, "other language": 0.05}

POLITE = {
    "en": [" I hope that helps.", " Feel free to ask more.", " Thank you for asking."],
    "zh": ["希望對您有幫助。", "歡迎再問我。", "謝謝您的提問。"],
}
WORDY = {
    "en": [" That is what I would say about it, and I could go on for a long time.",
           " There are of course many other things that one could add here, and perhaps one should."],
    "zh": ["以上就是我想說的，其實還可以繼續說很久，因為世界上的事說不完。", "當然，這裡還有許多別的事可以補充，只好等下次再慢慢說了。"],
}
# fmt: on


def dress(answer: str, translated: str | None, lang: str, habit: str, rng: random.Random) -> str:
    """The answer in an annotator's manner; without a translation the other language's annotator writes plainly.

    The habits come after the answer: a small model that has begun with a courtesy forgets what it was asked (docs/log.md).
    """
    if habit == "polite":
        return answer + rng.choice(POLITE[lang])
    if habit == "wordy":
        return answer + rng.choice(WORDY[lang])
    if habit == "repeating":
        return " ".join([answer] * 2) if lang == "en" else answer * 2
    if habit == "other language" and translated:
        return translated
    return answer


def any_habit(rng: random.Random) -> str:
    """An annotator at random, by HABITS' shares."""
    return rng.choices(list(HABITS), list(HABITS.values()))[0]
