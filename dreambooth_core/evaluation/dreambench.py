"""The tables of a benchmark over subjects: means with intervals, as in the DreamBooth paper."""

from __future__ import annotations

from dreambooth_core.records import BaseModelIdentity, Evaluation, Record


class CaseScores(Record):
    """The scores of one subject under one condition; the first row is that of its checkpoint."""

    subject: str
    condition: str
    identifier: str
    class_noun: str
    step: int
    qualified: bool | None
    base_model: BaseModelIdentity
    evaluation: Evaluation
