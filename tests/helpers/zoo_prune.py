"""Networks that pruning is tried on: every torchvision classifier up to 100 M parameters, and families of timm."""

from __future__ import annotations

import zoo

LARGEST = 100_000_000  # parameters

TIMM_FAMILIES = [
    "resnet26d", "resnetv2_50d_gn", "resnetv2_50", "resnetv2_50x1_bit", "nfnet_f0", "dm_nfnet_f0", "convnextv2_atto",
    "resnest14d",
    "res2net50_14w_8s", "seresnet18", "ecaresnet26t", "skresnet18", "cspresnet50", "cspdarknet53", "darknet17", "dla34",
    "hrnet_w18_small", "dpn48b", "vovnet39a", "selecsls42", "hardcorenas_a", "ghostnet_100", "lcnet_050", "tinynet_e",
    "mixnet_s", "fbnetc_100", "mobileone_s0", "repvgg_a0", "rexnet_100", "gernet_s", "regnetz_b16", "edgenext_xx_small",
    "mobilevit_xxs", "mobilevitv2_050", "fastvit_t8", "efficientformer_l1", "efficientformerv2_s0", "repghostnet_050",
    "repvit_m0_9", "starnet_s1", "convmixer_768_32", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "swiftformer_xs",
    "inception_next_atto", "inception_v4", "inception_resnet_v2", "xception41", "hgnet_tiny", "hgnetv2_b0", "mambaout_femto",
    "focalnet_tiny_srf", "visformer_tiny", "efficientvit_b0", "efficientvit_m0", "coatnet_nano_rw_224", "maxvit_rmlp_pico_rw_256",
    "poolformer_s12", "poolformerv2_s12", "caformer_s18", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224", "pit_ti_224", "levit_128s", "mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224", "xcit_nano_12_p16_224",
    "coat_tiny", "twins_svt_small", "twins_pcpvt_small", "pvt_v2_b0", "crossvit_tiny_240", "tnt_s_legacy_patch16_224",
    "volo_d1_224", "convit_tiny", "mvitv2_tiny", "nest_tiny", "beit_base_patch16_224",
    "eva02_tiny_patch14_224", "sequencer2d_s", "davit_tiny", "gcvit_xxtiny", "hiera_tiny_224", "tiny_vit_5m_224",
    "swinv2_cr_tiny_224", "swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224", "vit_tiny_patch16_224",
    "shvit_s1", "rdnet_tiny", "nextvit_small", "halonet26t", "lambda_resnet26t",
    "botnet26t_256", "semnasnet_075", "spnasnet_100", "mnasnet_small", "legacy_seresnet18",
    "pnasnet5large", "ese_vovnet19b_dw", "vgg11", "densenetblur121d", "gcresnet33ts", "eca_botnext26ts_256",
    "bat_resnext26ts", "regnetv_040", "resnetrs50", "haloregnetz_b", "naflexvit_base_patch16_gap",
]  # fmt: skip

# networks that take only inputs of the size they were made for (position embeddings, windows)
FIXED_SIZE = [
    "inception_v3", "vit_b", "maxvit_t", "patch", "cait", "pit_ti", "levit", "mixer", "gmlp", "resmlp", "crossvit", "volo",
    "convit", "nest_", "hiera", "swinv2", "swin_tiny", "coat_tiny", "maxvit_rmlp", "tnt_s", "botnet", "botnext", "halo",
    "lambda", "coatnet", "gcvit", "efficientformer", "visformer", "tiny_vit", "deit", "xcit", "twins", "mvit", "naflex",
    "sequencer", "efficientvit_m", "samvit", "davit",
]  # fmt: skip


def classifiers() -> list[str]:
    """torchvision's classifiers by name; their sizes are in the descriptions of their published weights."""
    models = zoo.torchvision().models
    sizes = {n: next(iter(models.get_model_weights(n))).meta["num_params"] for n in models.list_models(module=models)}
    return [n for n, size in sizes.items() if size <= LARGEST]
