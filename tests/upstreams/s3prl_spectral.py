"""Tiny random checkpoints of s3prl's spectrogram families, as their authors release them."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from upstreams.families import s3prl_bridge, s3prl_entries
from upstreams.families.s3prl_entries import missing_package

AUDIO = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "cmvn": True, "decode_wav": False}
LOG_MEL = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
TRANSFORMER: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": "1e-12",
    "share_layer": False,
    "pre_layer_norm": False,
}
VQ = {"codebook_size": [8], "code_dim": [16], "gumbel_temperature": 1.0}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def module(name: str) -> Any:
    """A module of s3prl's own code, by its path below s3prl.upstream."""
    s3prl_bridge.import_hub()
    return importlib.import_module(f"s3prl.upstream.{name}")


def settled(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a model whose running statistics are not those of a fresh one."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.add_(torch.rand_like(tensor))
    return model.state_dict()


def apc(path: Path, **more: Any) -> Path:
    paras = {"hidden_size": 16, "num_layers": 3, "dropout": 0.1, "residual": True, **more}
    state = module("apc.apc").APC(80, **paras).state_dict()
    config = {"data": {"audio": dict(AUDIO)}, "model": {"paras": paras}}
    return save({"config": config, "model": state, "global_step": 9, "optimizer": {"state": {}}}, path)


def vq_apc(path: Path) -> Path:
    return apc(path, vq=VQ)


def npc(path: Path) -> Path:
    paras = {"hidden_size": 16, "n_blocks": 2, "dropout": 0.1, "residual": True, "kernel_size": 15, "mask_size": 5}
    paras |= {"vq": VQ, "batch_norm": True, "activate": "relu", "disable_cross_layer": False}
    state = settled(module("npc.npc").NPC(80, **paras))
    return save({"config": {"data": {"audio": dict(AUDIO)}, "model": {"paras": paras}}, "model": state}, path)


def transformer(path: Path, target: str = "mel", **more: Any) -> Path:
    """TERA, Mockingjay and Audio ALBERT, which differ in what they were trained on and in what layers share."""
    config = {**TRANSFORMER, **more}
    audio = {"win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 80, "n_mfcc": 13, "target_level": -25}
    audio |= {"input": dict(LOG_MEL), "target": {**LOG_MEL, "feat_type": target}}
    models = module("mockingjay.model")
    sizes = models.TransformerConfig(config)
    content = {
        "Transformer": models.TransformerModel(sizes, 80).state_dict(),
        "SpecHead": models.TransformerSpecPredictionHead(sizes, 201 if target == "linear" else 80).state_dict(),
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "Global_step": 1_000_000,
        "Config": {"transformer": config, "audio": audio, "task": {"sequence_length": 1500}},
        "Paras": Namespace(seed=1337, expdir="result/transformer", cpu=False),
    }
    return save(content, path)


def tera(path: Path) -> Path:
    return transformer(path)


def mockingjay(path: Path) -> Path:
    return transformer(path, target="linear")


def audio_albert(path: Path) -> Path:
    return transformer(path, share_layer=True)


def byol_a(path: Path, size: int = 512) -> Path:
    return save(settled(module("byol_a.byol_a").AudioNTT2020(d=size)), path)


def byol_s(path: Path, kind: str = "default") -> Path:
    serab = module("byol_s.serab_byols.serab")
    sizes = module("byol_s.byol_a.common").load_yaml_config(Path(serab.__file__).parent / "config.yaml")
    return save(settled(serab.get_model(kind, sizes)), path)


def mae_ast(path: Path, patches: bool = True) -> Path:
    """The frame model sees 2 frames of 128 bands at a time, the patch model 16 of 16."""
    frames, bands = (16, 16) if patches else (2, 128)
    names = ("ast_kernel_size", "ast_kernel_stride")
    model = {f"{name}_chan": bands for name in names} | {f"{name}_time": frames for name in names}
    model |= {"_name": "mae_ast", "encoder_layers": 2, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 32}
    model |= {"encoder_attention_heads": 4, "decoder_layers": 1, "decoder_embed_dim": 24, "enc_sine_pos": True}
    model |= {"dec_sine_pos": True, "max_token_length": 3000}
    task = {"_name": "mae_ast_pretraining", "sample_rate": 16_000, "feature_dim": 128, "feature_rate": 100}
    task |= {"feature_type": "fbank", "mask_type": "random_mask"}
    code = module("mae_ast.mae_ast")
    known = {f: getattr(code.MAE_AST_Config(), f) for f in code.MAE_AST_Config.__dataclass_fields__}
    built = code.MAE_AST(Namespace(**(known | model)), Namespace(**task))
    state = settled(built)
    return save({"cfg": {"model": known | model, "task": task}, "model": state, "args": None}, path)


def mae_ast_frame(path: Path) -> Path:
    return mae_ast(path, patches=False)


def decoar(path: Path) -> Path:
    return save({"model": module("decoar.expert").Decoar().state_dict()}, path)


def decoar2(path: Path) -> Path:
    return save({"model": module("decoar2.decoar2").Decoar2().state_dict()}, path)


def shrink(monkeypatch: Any, width: int = 24) -> None:
    """Has s3prl build models that it knows in one size only in a size for tests; AST's code insists on 768."""
    sizes = {"embed_dim": width, "depth": 2, "num_heads": 4, "mlp_ratio": 1}
    if not missing_package("ssast"):
        s3prl_entries.import_timm()
        import timm
        from timm.models.vision_transformer import DistilledVisionTransformer as Vit

        monkeypatch.setattr(timm, "create_model", lambda *_, **__: Vit(img_size=384, patch_size=16, **sizes))
    passt = module("passt.hear21passt.models.passt")
    large = passt.PaSST
    monkeypatch.setattr(passt, "PaSST", lambda **given: large(**(given | sizes)))
    few = {"layers": 2, "embed_dim": 32, "ffn_embed_dim": 32, "attention_heads": 4}
    for name, value in few.items():
        monkeypatch.setitem(module("decoar2.decoar2").args, f"encoder_{name}", value)
    monkeypatch.setattr(module("decoar.expert"), "Decoar", narrowed(module("decoar.decoar").Decoar))


def narrowed(kind: Any) -> Any:
    def build() -> Any:
        with torch.device("meta"):
            model = kind()
        model.post_extract_proj = torch.nn.Linear(80, 16)
        for name in ("forward_lstm", "backward_lstm"):
            setattr(model, name, torch.nn.LSTM(16, 16, num_layers=4, batch_first=True))
        return model

    return build


def ssast(path: Path, patches: bool = True, frames: int = 1024) -> Path:
    """A state dict of the authors' pre-training model, as torch.nn.DataParallel names it (Gong et al., 2022)."""
    sizes = {"fshape": 16, "tshape": 16} if patches else {"fshape": 128, "tshape": 2}
    strides = {"fstride": sizes["fshape"], "tstride": sizes["tshape"]}
    model = module("ssast.ast_models").ASTModel(**sizes, **strides, input_tdim=frames, pretrain_stage=True)
    return save(torch.nn.DataParallel(model).state_dict(), path)


def ssast_frame(path: Path) -> Path:
    return ssast(path, patches=False)


def ast(path: Path) -> Path:
    model = module("ast.ast_models").ASTModel(imagenet_pretrain=False, audioset_pretrain=False, verbose=False)
    return save(torch.nn.DataParallel(model).state_dict(), path)


def passt(path: Path) -> Path:
    return save(module("passt.hear21passt.models.passt").get_model(pretrained=False).state_dict(), path)
