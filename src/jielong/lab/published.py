"""Published accuracies by size, to stand beside ours in grey: other questions, other text, the same direction."""

from __future__ import annotations

from dataclasses import dataclass

from jielong.scale.known import MODELS


@dataclass(frozen=True)
class Curve:
    """Shares of right answers, or F1, of models by name (`scale.known`)."""

    title: str
    source: str
    kind: str
    """closed: from memory; reading: from a text in front of it."""
    points: dict[str, float]

    def parameters(self) -> list[float]:
        return [MODELS[name].parameters for name in self.points]


GPT3 = ("gpt3-125m", "gpt3-350m", "gpt3-760m", "gpt3-1.3b", "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b", "gpt3-175b")
GPT2 = ("gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1542m")
H1 = "Brown et al. 2020, table H.1"
CURVES = (
    Curve(
        "GPT-3, ARC easy, few-shot", H1, "closed",
        dict(zip(GPT3, (0.427, 0.510, 0.581, 0.591, 0.621, 0.658, 0.691, 0.701), strict=True)),
    ),
    Curve(
        "GPT-3, ARC challenge, few-shot", H1, "closed",
        dict(zip(GPT3, (0.255, 0.284, 0.323, 0.367, 0.395, 0.437, 0.448, 0.515), strict=True)),
    ),
    Curve("GPT-3, TriviaQA, zero-shot", "Brown et al. 2020, table 3.3", "closed", {"gpt3-175b": 0.643}),
    Curve("GPT-2, Natural Questions", "Radford et al. 2019, section 3.8", "closed", {"gpt2-1542m": 0.041}),
    Curve(
        "GPT-2, LAMBADA", "Radford et al. 2019, table 3", "reading",
        dict(zip(GPT2, (0.4599, 0.5548, 0.6012, 0.6324), strict=True)),
    ),
    Curve(
        "GPT-3, LAMBADA, zero-shot", H1, "reading",
        dict(zip(GPT3, (0.427, 0.543, 0.604, 0.636, 0.671, 0.703, 0.725, 0.762), strict=True)),
    ),
    Curve("GPT-2, CoQA, F1", "Radford et al. 2019, section 3.5", "reading", {"gpt2-1542m": 0.55}),
    Curve("GPT-3, CoQA, zero-shot, F1", "Brown et al. 2020, section 3.6", "reading", {"gpt3-175b": 0.815}),
)  # fmt: skip
