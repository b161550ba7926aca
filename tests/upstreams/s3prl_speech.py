"""Tiny random checkpoints of s3prl's waveform families, written by its own model classes as released ones are."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.upstreams.models import SMALL as HUGGING_FACE
from upstreams.base import Upstream
from upstreams.families import s3prl_bridge

LAYERS = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2"
BLOCKS = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2}
SMALL = {**BLOCKS, "conv_feature_layers": LAYERS, "conv_pos": 8, "conv_pos_groups": 2}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
TASK = {"normalize": False, "sample_rate": 16_000, "label_rate": 50.0}
PRETRAINED = {"quantize_targets": True, "final_dim": 8, "latent_vars": 4, "latent_groups": 2}
CONFORMER: dict[str, Any] = {"layer_type": "conformer", "attn_type": "espnet", "depthwise_conv_kernel_size": 5}
DICTIONARY = [["<s>", "<pad>", "</s>", "<unk>", "1", "2"]]


def sound(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def encoded(upstream: Upstream, clip: Tensor) -> Tensor:
    """Frames (T, L, D) of a clip (1, S) alone."""
    with torch.no_grad():
        return upstream(clip, torch.tensor([clip.shape[1]])).frames[0]


def module(name: str) -> Any:
    s3prl_bridge.import_hub()
    return importlib.import_module(f"s3prl.upstream.{name}")


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a model after some training, as it were: no two tensors are alike, as zeros and ones would be."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dict(model.state_dict())


def hubert(path: Path, large: bool = False, **options: Any) -> Path:
    parts = module("hubert.hubert_model")
    config = {**SMALL, "label_rate": 50.0, "final_dim": 8, **(LARGE if large else {}), **options}
    task = {**TASK, "normalize": large}
    model = parts.HubertModel(parts.HubertConfig(**config), parts.HubertPretrainingConfig(**task), DICTIONARY)
    state = {"task_cfg": task, "model_cfg": config, "model_weight": trained(model), "dictionaries_symbols": DICTIONARY}
    return saved(state, path)


def wav2vec2(path: Path, large: bool = False, **options: Any) -> Path:
    parts, config = module("wav2vec2.wav2vec2_model"), {**SMALL, **PRETRAINED, **(LARGE if large else {}), **options}
    model = parts.Wav2Vec2Model(parts.Wav2Vec2Config(**config))
    return saved({"task_cfg": {**TASK, "normalize": large}, "model_cfg": config, "model_weight": trained(model)}, path)


def wavlm(path: Path, large: bool = False) -> Path:
    parts, relative = module("wavlm.WavLM"), {"relative_position_embedding": True, "gru_rel_pos": True}
    config = {**SMALL, **relative, "num_buckets": 8, "max_distance": 20, **(LARGE if large else {}), "normalize": large}
    return saved({"cfg": config, "model": trained(parts.WavLM(parts.WavLMConfig(config)))}, path)


def unispeech_sat(path: Path) -> Path:
    parts, config = module("wavlm.WavLM"), {**SMALL, "relative_position_embedding": False, "normalize": False}
    return saved({"cfg": config, "model": trained(parts.WavLM(parts.WavLMConfig(config)))}, path)


def data2vec(path: Path) -> Path:
    parts = module("data2vec.data2vec_model")
    config = {**SMALL, "conv_pos": 10, "pos_conv_depth": 2, "extractor_mode": "layer_norm"}
    model = parts.Data2VecAudioModel(parts.Data2VecAudioConfig(**config))
    model.remove_pretraining_modules()
    state = {**trained(model), "_ema": {"encoder": torch.zeros(3)}}
    return saved({"task_cfg": {**TASK, "normalize": True}, "model_cfg": config, "model_weight": state}, path)


def multires_hubert(path: Path) -> Path:
    parts, names = module("multires_hubert.hubert_model"), DICTIONARY * 2
    config = {**SMALL, "label_rate": 50.0, "final_dim": 8, "label_rate_ratios": [1, 2], "conv_adapator_kernal": 3}
    config |= {"encoder_layers": 1, "override_encoder_layers": "[1, 1, 1]", "use_plain_updownsample": False}
    task = {**TASK, "label_rate_ratios": [1, 2]}
    settings = parts.MultiresHubertConfig(**config), parts.MultiresHubertPretrainingConfig(**task)
    weights = trained(parts.MultiresHubertModel(*settings, names))
    return saved({"task_cfg": task, "model_cfg": config, "model_weight": weights, "dictionaries_symbols": names}, path)


def distiller(path: Path) -> Path:
    parts = module("distiller.model")
    config = {
        **BLOCKS,
        "extractor_conv_feature_layers": LAYERS,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "final_dim": 16,
        "n_tasks": 2,
        "out_layer_type": "expand-last",
        "out_layer_inter_dim": 6,
        "pred_layer_id": [1, 2],
    }
    model = parts.DistillerModel(parts.DistillerConfig(config))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {
        "Config": {"distiller": config},
        "Distiller": trained(model),
        "Optimizer": optimizer.state_dict(),
        "Step": 3,
        "Args": argparse.Namespace(seed=1),
    }
    return saved(state, path)


def cpc(path: Path, **options: Any) -> Path:
    parts, config = module("cpc.feature_loader"), {"hiddenEncoder": 16, "hiddenGar": 16, **options}
    arguments = parts.get_default_cpc_config()
    parts.loadArgs(arguments, argparse.Namespace(**config))
    model = parts.CPCModel(parts.getEncoder(arguments), parts.getAR(arguments))
    return saved({"config": config, "weights": trained(model)}, path)


def wav2vec(path: Path, **options: Any) -> Path:
    parts = module("wav2vec.wav2vec_model")
    config = {
        "infonce": False,
        "conv_feature_layers": "[(8, 10, 5), (8, 8, 4), (8, 4, 2), (8, 4, 2), (8, 4, 2)]",
        "conv_aggregator_layers": "[(8, 2, 1), (8, 3, 1)]",
        "prediction_steps": 3,
        **options,
    }
    model = parts.Wav2VecModel(parts.Wav2VecConfig(**config))
    if config.get("vq_type") == "kmeans":
        model.vector_quantizer.embedding.data.mul_(20.0)  # else its shortest vector is the nearest to everything
    return saved({"task_cfg": TASK, "model_cfg": config, "model_weight": trained(model)}, path)


def vq_wav2vec(path: Path) -> Path:
    return wav2vec(path, vq_type="gumbel", vq_vars=5, vq_groups=2)


def discretebert(folder: Path) -> Path:
    """Two files in a folder, by the names that s3prl downloads."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)  # its frames are words; of other models one far off changes as much as those of a sound do
    wav2vec(folder / "vq-wav2vec_kmeans.pt", vq_type="kmeans", vq_vars=3, vq_groups=2)
    words = "".join(f"{one}-{other} 1\n" for one in range(3) for other in range(3))
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2}
    config = argparse.Namespace(**sizes, max_positions=512, data="", seed=1)
    parts = module("roberta.convert")
    dictionary = parts.Dictionary()
    for word in [line.split()[0] for line in words.splitlines()] + ["<mask>"]:
        dictionary.add_symbol(word)
    model = parts.RobertaModel(config, parts.RobertaEncoder(config, dictionary))
    state = {"task_cfg": {"data": "", "seed": 1}, "model_cfg": config, "model_weight": trained(model)}
    saved({**state, "text_dictionary": words}, folder / "vq_wav2vec_kmeans_roberta.pt")
    return folder


def hugging_face(path: Path, kind: str) -> Path:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        **{
            **HUGGING_FACE,
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
            "conv_stride": [5, 2, 2, 2, 2, 2, 2],
            "conv_dim": [8] * 7,
        }
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    return path


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "hubert_local": hubert,
    "hubert": lambda path: hubert(path, large=True),
    "wav2vec2_local": wav2vec2,
    "wav2vec2": lambda path: wav2vec2(path, large=True),
    "wav2vec2_conformer_relpos": lambda path: wav2vec2(path, large=True, **CONFORMER, pos_enc_type="rel_pos"),
    "wav2vec2_conformer_rope": lambda path: wav2vec2(path, large=True, **CONFORMER, pos_enc_type="rope"),
    "wavlm_local": wavlm,
    "wavlm_large": lambda path: wavlm(path, large=True),
    "unispeech_sat_base": unispeech_sat,
    "data2vec": data2vec,
    "multires_hubert_local": multires_hubert,
    "distilhubert": distiller,
    "modified_cpc": cpc,
    "wav2vec": wav2vec,
    "vq_wav2vec_gumbel": vq_wav2vec,
    "discretebert": discretebert,
    "hf_hubert_custom": lambda path: hugging_face(path, "Hubert"),
    "hf_wav2vec2_custom": lambda path: hugging_face(path, "Wav2Vec2"),
}
