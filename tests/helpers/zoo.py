"""Published architectures to try the compiler on, with random weights: nothing is downloaded.

`MODELS[name]()` gives a model in eval mode and its example inputs. torchvision, timm and transformers are optional.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

TORCHVISION = [
    "alexnet", "vgg16_bn", "resnet18", "resnet50", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_large", "mnasnet1_0", "squeezenet1_1", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip

TIMM = [
    "resnet26d", "resnest14d", "res2net50_14w_8s", "seresnet18", "ecaresnet50t", "skresnet18",
    "cspresnet50", "darknet17", "dla34", "hrnet_w18_small", "dpn48b", "vovnet39a", "selecsls42", "hardcorenas_a",
    "ghostnet_100", "lcnet_050", "tinynet_e", "mixnet_s", "fbnetc_100", "mobileone_s0", "repvgg_a0", "rexnet_100",
    "nfnet_f0", "gernet_s", "regnetz_b16", "edgenext_xx_small", "mobilevit_xxs", "fastvit_t8", "efficientformer_l1",
    "repghostnet_050", "starnet_s1", "convmixer_768_32", "deit_tiny_patch16_224", "cait_xxs24_224", "pit_ti_224",
    "levit_128s", "mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224", "poolformer_s12", "xcit_nano_12_p16_224",
    "coat_tiny", "twins_svt_small", "crossvit_tiny_240", "visformer_tiny", "tnt_s_legacy_patch16_224",
    "volo_d1_224", "convit_tiny", "mvitv2_tiny", "nest_tiny", "beit_base_patch16_224", "eva02_tiny_patch14_224",
    "efficientvit_b0", "efficientvit_m0", "inception_next_tiny", "focalnet_tiny_srf", "davit_tiny", "gcvit_xxtiny",
    "maxvit_rmlp_pico_rw_256", "hgnet_tiny", "tiny_vit_5m_224", "mambaout_femto", "vgg11",
]  # fmt: skip


@functools.cache
def torchvision() -> Any:
    """torchvision, also where its compiled operators do not load: models need only the declarations of two of them."""
    make: Any = torch.library.Library
    library = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision.library = library  # type: ignore[attr-defined]
    import torchvision as module

    return module


def make(name: str, batch: int = 1) -> Example:
    """A model in eval mode with example arguments: `torchvision/resnet18`, `timm/dla34`, `transformers/bert`."""
    torch.manual_seed(0)
    family, _, kind = name.partition("/")
    return {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[family](kind, batch)


def names() -> list[str]:
    return [
        *(f"torchvision/{n}" for n in TORCHVISION),
        *(f"timm/{n}" for n in TIMM),
        *(f"transformers/{n}" for n in TRANSFORMERS),
    ]


def _torchvision(kind: str, batch: int) -> Example:
    extra = {"init_weights": False} if kind in ("googlenet", "inception_v3") else {}
    model = torchvision().models.get_model(kind, weights=None, **extra).eval()
    size = 299 if kind == "inception_v3" else 224
    return model, (torch.randn(batch, 3, size, size),), {}


def _timm(kind: str, batch: int) -> Example:
    torchvision()
    import timm

    model = timm.create_model(kind, pretrained=False).eval()
    return model, (torch.randn(batch, *model.default_cfg["input_size"]),), {}


def _text(batch: int, length: int = 12) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[:, -3:] = 0
    return {"input_ids": torch.randint(0, 90, (batch, length)), "attention_mask": mask}


def _bert(batch: int) -> Example:
    import transformers as t

    config = t.BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return (
        t.BertForSequenceClassification(config),
        (),
        {**_text(batch), "token_type_ids": torch.zeros(batch, 12, dtype=torch.long)},
    )


def _distilbert(batch: int) -> Example:
    import transformers as t

    config = t.DistilBertConfig(vocab_size=90, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    return t.DistilBertModel(config), (), _text(batch)


def _roberta(batch: int) -> Example:
    import transformers as t

    config = t.RobertaConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return t.RobertaForTokenClassification(config), (), _text(batch)


def _vision(kind: str, model: str, batch: int) -> Example:
    """ViT and DeiT, which have the same options."""
    import transformers as t

    config = getattr(t, f"{kind}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=50,
    )  # fmt: skip
    return getattr(t, model)(config), (), {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _vit(batch: int) -> Example:
    return _vision("ViT", "ViTForImageClassification", batch)


def _deit(batch: int) -> Example:
    return _vision("DeiT", "DeiTForImageClassificationWithTeacher", batch)


def _swin(batch: int) -> Example:
    import transformers as t

    config = t.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=50
    )
    return t.SwinForImageClassification(config), (), {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _whisper(batch: int) -> Example:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=90, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return t.WhisperModel(config).get_encoder(), (), {"input_features": torch.randn(batch, 16, 100)}


def _wav2vec2(batch: int) -> Example:
    import transformers as t

    config = t.Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(16, 16, 16), conv_kernel=(10, 3, 3), conv_stride=(5, 2, 2), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    mask = torch.ones(batch, 1600, dtype=torch.long)
    mask[:, 1200:] = 0
    return t.Wav2Vec2ForCTC(config), (), {"input_values": torch.randn(batch, 1600), "attention_mask": mask}


def _detr(batch: int) -> Example:
    import transformers as t

    images = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = t.DetrConfig(
        backbone_config=images, num_queries=10, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_labels=5,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(batch, 3, 64, 64), "pixel_mask": torch.ones(batch, 64, 64, dtype=torch.long)}
    return t.DetrForObjectDetection(config), (), inputs


def _gpt2(batch: int) -> Example:
    import transformers as t

    config = t.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False)
    return t.GPT2LMHeadModel(config), (), _text(batch)


def _t5(batch: int) -> Example:
    import transformers as t

    config = t.T5Config(vocab_size=90, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return t.T5EncoderModel(config), (), _text(batch)


def _llama(batch: int) -> Example:
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return t.LlamaForCausalLM(config), (), _text(batch)


def _mobilevit(batch: int) -> Example:
    import transformers as t

    config = t.MobileViTConfig(image_size=64)
    return t.MobileViTModel(config), (), {"pixel_values": torch.randn(batch, 3, 64, 64)}


def _segformer(batch: int) -> Example:
    import transformers as t

    config = t.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    return t.SegformerForSemanticSegmentation(config), (), {"pixel_values": torch.randn(batch, 3, 64, 64)}


TRANSFORMERS: dict[str, Callable[[int], Example]] = {
    "bert": _bert, "distilbert": _distilbert, "roberta": _roberta, "vit": _vit, "deit": _deit, "swin": _swin,
    "whisper": _whisper, "wav2vec2": _wav2vec2, "segformer": _segformer, "detr": _detr, "mobilevit": _mobilevit,
    "t5_encoder": _t5, "gpt2": _gpt2, "llama": _llama,
}  # fmt: skip


def _transformers(kind: str, batch: int) -> Example:
    with contextlib.suppress(ImportError):
        torchvision()  # transformers imports it where it is installed
    model, args, kwargs = TRANSFORMERS[kind](batch)
    return model.eval(), args, kwargs
