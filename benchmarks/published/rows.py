"""Published rows: HR@10 and NDCG@10 of each user's last item, the whole catalogue ranked."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line of somebody's table."""

    system: str
    hit_rate: float
    ndcg: float
    source: str


_S3REC = "table in the repository of S3-Rec"
_BSAREC = "log in the repository of BSARec"
_TRANSFORMERS = "README of blondered/transformer_benchmark"

ROWS: dict[str, tuple[Row, ...]] = {
    "lastfm": (
        Row("BSARec", 0.0807, 0.0435, _BSAREC),
        Row("S3-Rec", 0.0743, 0.0427, _S3REC),
        Row("SASRec", 0.0688, 0.0390, _S3REC),
        Row("BERT4Rec", 0.0633, 0.0337, _S3REC),
    ),
    "beauty": (
        Row("BSARec", 0.1008, 0.0611, _BSAREC),
        Row("eSASRec", 0.0928, 0.0523, _TRANSFORMERS),
        Row("SASRec, sampled softmax", 0.0921, 0.0531, _TRANSFORMERS),
        Row("DuoRec", 0.0845, 0.0443, _TRANSFORMERS),
        Row("ActionPiece", 0.0775, 0.0424, _TRANSFORMERS),
        Row("ICLRec", 0.0744, 0.0403, _TRANSFORMERS),
        Row("TIGER", 0.0648, 0.0384, _TRANSFORMERS),
        Row("S3-Rec", 0.0647, 0.0327, _S3REC),
        Row("SASRec", 0.0605, 0.0318, _S3REC),
    ),
}
