"""The headline claims of the seed systems' papers: each says that one variant is better than another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Regime = Literal["frozen", "fine-tuned"]

TASKS = ("tiny_keyword", "tiny_language", "tiny_emotion", "tiny_event", "tiny_speaker")
VERIFICATION = "tiny_verification"
RECOGNITION = ("tiny_ctc", "tiny_ctc_third")
FLOOR = "fbank"  # shown beside the systems; as it learns nothing, it has no seeds


@dataclass(frozen=True)
class Variant:
    """One side of a claim: a method that is pre-trained in some way, or not at all.

    method: the argument of `bench pretrain`. description: shown in tables. trained: False leaves the start weights as
    they are. metadata, only: as in `PretrainingRequest`. after: the variant whose weights of the same seed are refined
    by rounds of pseudo-labels; "" pre-trains by the method.
    """

    name: str
    method: str
    description: str
    trained: bool = True
    metadata: tuple[tuple[str, float], ...] | None = None
    only: str | None = None
    after: str = ""

    @property
    def upstream(self) -> str:
        """The registered upstream that reads the method's checkpoints."""
        return self.method.partition("?")[0]


@dataclass(frozen=True)
class Claim:
    """The claim that the first variant is better than the second.

    paper: what its authors report. relative: whether they report relative gains. tasks: those whose average decides;
    the metrics of all must be better when higher, or of all when lower. beside: tasks that are shown as well.
    confusions: the claim is about how often clips are mistaken for a related language.
    """

    system: str
    first: str
    second: str
    regime: Regime
    paper: str
    relative: bool = False
    tasks: tuple[str, ...] = TASKS
    beside: tuple[str, ...] = ()
    confusions: bool = False


SPEECH = "speaker"  # a label that only clips with speech have
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("ssast", "ssast", "SSAST, pre-trained to tell masked frames from each other and to reconstruct them"),
        Variant(
            "ssast-discriminative",
            "ssast?objective=discriminative",
            "SSAST, pre-trained to tell them from each other only",
        ),
        Variant("ssast-generative", "ssast?objective=generative", "SSAST, pre-trained to reconstruct them only"),
        Variant("ssast-random", "ssast", "the weights that ssast starts from, untrained", trained=False),
        Variant("ssast-plain", "ssast?start=plain", "SSAST as its authors start it, untrained", trained=False),
        Variant("atst", "atst", "ATST, pre-trained by a teacher and a student"),
        Variant("atst-random", "atst", "the weights that atst starts from, untrained", trained=False),
        Variant("dino", "dino", "DINO, pre-trained on the pool's speech without labels", only=SPEECH),
        Variant(
            "dino-pseudo", "dino", "dino, tuned twice to tell clusters of its own embeddings apart", only=SPEECH,
            after="dino",
        ),
        Variant("dino-random", "dino", "the weights that dino starts from, untrained", trained=False, only=SPEECH),
        Variant("masr", "masr", "MASR, pre-trained by masked prediction and metadata", only=SPEECH),
        Variant(
            "masr-plain", "masr",
            "the same without metadata, for as many steps of as many clips, drawn singly, not in groups of like ones",
            metadata=(), only=SPEECH,
        ),
        Variant(
            "masr-random", "masr", "the weights that masr starts from, untrained", trained=False, metadata=(),
            only=SPEECH,
        ),
        Variant(
            "pms", "pms", "PMS-SSL, pre-trained to predict coarse and fine units, attending farther layer by layer",
            only=SPEECH,
        ),
        Variant(
            "pms-plain", "pms?targets=fine&bands=none", "the same with fine units only and full attention: HuBERT",
            only=SPEECH,
        ),
        Variant("pms-random", "pms", "the weights that pms starts from, untrained", trained=False, only=SPEECH),
    )
}  # fmt: skip

SSAST_GAIN = "+60.9 % relative to no pre-training, mean of six tasks, fine-tuned (Gong et al., 2022)"
DINO_EER = "4.38 % EER on VoxCeleb1, 40 % below the best without labels before it"
MASR_NONE = "no such figure is public (Raj et al., 2023)"
CLAIMS = (
    Claim("ssast", "ssast", "ssast-random", "frozen", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-plain", "frozen", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-random", "fine-tuned", SSAST_GAIN, relative=True),
    Claim("ssast", "ssast", "ssast-plain", "fine-tuned", SSAST_GAIN, relative=True),
    Claim(
        "ssast", "ssast", "ssast-discriminative", "frozen",
        "+1.7 points, mean of six tasks, fine-tuned (Gong et al., 2022, table 2)",
    ),
    Claim(
        "ssast", "ssast", "ssast-generative", "frozen",
        "+10.5 points, mean of six tasks, fine-tuned (Gong et al., 2022, table 2)",
    ),
    Claim("atst", "atst", "atst-random", "frozen", "no such figure is known here (Li and Li, 2022)"),
    Claim(
        "atst", "atst", "ssast", "frozen",
        "72.0 % against 40.1 % of the best before it, which is not SSAST, speakers of VoxCeleb1, frozen; fine-tuned"
        " 94.3 % against SSAST's 80.8 % (Li and Li, 2022)",
    ),
    Claim(
        "dino", "dino", "dino-random", "frozen", f"{DINO_EER}; no random twin is known here (Cho et al., 2022)",
        relative=True, tasks=(VERIFICATION,), beside=("tiny_cosine",),
    ),
    Claim(
        "dino", "dino", FLOOR, "frozen", f"{DINO_EER}; no such floor is known here (Cho et al., 2022)",
        relative=True, tasks=(VERIFICATION,), beside=("tiny_cosine",),
    ),
    Claim(
        "dino", "dino-pseudo", "dino", "frozen",
        "1.89 % EER on VoxCeleb1 against 4.38 %, 57 % fewer errors, after several rounds (Cho et al., 2022)",
        relative=True, tasks=(VERIFICATION,), beside=("tiny_cosine",),
    ),
    Claim(
        "dino", "dino", "dino-random", "frozen",
        "micro-F1 of 60.87, 79.21 and 56.98 % on IEMOCAP, CREMA-D and MSP-Podcast; no random twin is known here (Cho et"
        " al., 2022)",
        tasks=("tiny_emotion",),
    ),
    Claim("masr", "masr", "masr-plain", "frozen", MASR_NONE, tasks=("tiny_language",)),
    Claim("masr", "masr", "masr-plain", "frozen", MASR_NONE, beside=(VERIFICATION,)),
    Claim(
        "masr", "masr", "masr-plain", "frozen",
        "the abstract says that closely related languages are separated; no figure is public (Raj et al., 2023)",
        tasks=("tiny_language",), confusions=True,
    ),
    Claim("masr", "masr", "masr-random", "frozen", MASR_NONE, beside=(VERIFICATION,)),
    Claim(
        "pms", "pms", "pms-plain", "fine-tuned",
        "12.7 % fewer errors than HuBERT with 100 h of LibriSpeech and 13.7 % with 10 h, test-other (Wan et al., 2022)",
        relative=True, tasks=RECOGNITION,
    ),
    Claim(
        "pms", "pms", "pms-random", "fine-tuned", "no such figure is known here (Wan et al., 2022)",
        relative=True, tasks=RECOGNITION,
    ),
)  # fmt: skip
