"""Names of options and weights of speech encoders in fairseq, and the corresponding names in transformers."""

from __future__ import annotations

import re
from typing import Any

# Default values in fairseq of options that a checkpoint does not contain; those of WavLM come from Microsoft's code.
DEFAULTS: dict[str, Any] = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "conv_pos_batch_norm": False,
    "pos_conv_depth": 1,
    "relative_position_embedding": False,
    "gru_rel_pos": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "layer_type": "transformer",
    "quantize_input": False,
    "crop_seq_to_multiple": 1,
}
CHOICES: dict[str, dict[Any, Any]] = {
    "extractor_mode": {"default": "group", "layer_norm": "layer"},
    "activation_fn": {
        "gelu": "gelu",
        "gelu_accurate": "gelu_pytorch_tanh",
        "gelu_fast": "gelu_pytorch_tanh",
        "linear": "linear",
        "relu": "relu",
        "relu_squared": "relu2",
        "tanh": "tanh",
    },
    "layer_type": {"transformer": True},
    "quantize_input": {False: True},
    "crop_seq_to_multiple": {1: True},
}

FIRST = "feature_extractor.conv_layers.0.0.weight"  # a weight that all supported models have
NESTED = "w2v_model."  # prefix of the encoder's weights in fine-tuned models
UNUSED = (  # pre-training heads, targets and teachers; no layer depends on them
    "mask_emb",
    "label_embs_concat",
    "final_proj.",
    "project_q.",
    "quantizer.",
    "target_glu.",
    "regression_head.",
    "spk_proj.",
    "ctc_proj.",
    "layer_norm_for_extract.",
    "encoder.layer_norm_for_extract.",
    "_ema",
)
SPELLINGS = (  # newer and older names in torch of the two parts of weight norm
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
)
OTHERS = (  # part of a weight's name, the model family, and advice
    ("vector_quantizer.", "vq-wav2vec", "as converted by s3prl, give it as s3prl:vq_wav2vec@FILE"),
    ("feature_aggregator.", "wav2vec 1.0", "as converted by s3prl, give it as s3prl:wav2vec@FILE"),
    ("middle_encoder.", "multi-resolution HuBERT", "as converted by s3prl, give it as s3prl:multires_hubert_base@FILE"),
    ("feature_extractor_video.", "AV-HuBERT, which watches lips", "give a model of audio alone, such as HuBERT"),
    ("modality_encoders.", "data2vec 2.0", "give data2vec audio, or your own loader as file.py:function"),
    ("discriminator.", "wav2vec-U, which reads another model's features", "give that model, a wav2vec 2.0"),
    ("sentence_encoder.", "RoBERTa, which reads text", "give the model of speech whose units it reads"),
    (".conv_module.", "a conformer", "as converted to transformers, give its folder as hf:FOLDER"),
)


def fairseq_name(name: str, layer_norm: bool, batch_norm: bool) -> str:
    """Return the name in fairseq's checkpoints of a weight in transformers' models.

    layer_norm: whether every convolution of the feature extractor has a layer norm; if not, the first has a group norm.
    batch_norm: whether the positional convolution has a batch norm instead of weight norm.
    """
    rules = (
        (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
        (r"(conv_layers\.\d+)\.layer_norm\.", r"\1.2.1." if layer_norm else r"\1.2."),
        (r"^feature_projection\.layer_norm\.", "layer_norm."),
        (r"^feature_projection\.projection\.", "post_extract_proj."),
        (r"pos_conv_embed\.layers\.(\d+)\.conv\.", r"pos_conv.\1.0."),
        (r"pos_conv_embed\.batch_norm\.", "pos_conv.0."),
        (r"pos_conv_embed\.conv\.", "pos_conv.1." if batch_norm else "pos_conv.0."),
        (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
        (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
        (r"\.attention\.gru_rel_pos_const$", ".self_attn.grep_a"),
        (r"\.attention\.", ".self_attn."),
        (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
        (r"\.feed_forward\.output_dense\.", ".fc2."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return fairseq_spelling(name)


def fairseq_spelling(name: str) -> str:
    """Return a weight's name with the older names of weight norm, which fairseq's checkpoints have."""
    for new, old in SPELLINGS:
        name = name.replace(new, old)
    return name
